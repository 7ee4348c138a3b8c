"""How a perturbation of the curvature is spread over octaves, in one pass over the responses of a sample; see
``learnreg.certificates.octaves``. Plain arithmetic in float64, for bounds."""

from __future__ import annotations

import math

import numpy as np

from learnreg.kernels.jit import compiled

__all__ = ["spread"]

_CHUNK = 512


@compiled
def spread(change, third, ratio, low, size, on_low, on_all, limits, lowest, squares, peaks):
    """The arguments (samples, responses) become: change, the bound of each entry; third, what it takes of the shared
    budget on_low low + on_all (samples,). squares, peaks (samples, 2, classes, octaves): of the plain and of the scaled
    entries, sums of squares of the former and the largest of the latter, by the class of low among the limits and the
    octave of the latter, the first being that of 2^lowest."""
    samples, responses = change.shape
    classes, last = limits.shape[0] + 1, peaks.shape[3] - 1
    plain, scaled, own = np.empty(_CHUNK), np.empty(_CHUNK), np.empty(_CHUNK)
    plain_bits, scaled_bits = plain.view(np.int64), scaled.view(np.int64)
    for i in range(samples):
        for first in range(0, responses, _CHUNK):
            stop = min(first + _CHUNK, responses)
            change_, third_ = change[i, first:stop], third[i, first:stop]
            ratio_, low_, size_ = ratio[i, first:stop], low[i, first:stop], size[i, first:stop]
            for j in range(change_.shape[0]):
                bend = low_[j] if low_[j] > 0.0 else 0.0
                slope = 0.0 if size_[j] == 0.0 else third_[j] * size_[j]
                change_[j] = 0.0 if size_[j] == 0.0 else change_[j] * size_[j]
                own[j] = 0.0 if size_[j] == 0.0 else ratio_[j] * size_[j]
                plain[j] = 0.0 if slope == 0.0 else slope / math.sqrt(on_low[i] * bend + on_all[i])
                scaled[j] = 0.0 if slope == 0.0 else plain[j] / math.sqrt(bend)
                third_[j] = plain[j]
            for j in range(change_.shape[0]):
                kind = 0
                for k in range(classes - 1):
                    kind += low_[j] >= limits[k]
                octave = min(max((plain_bits[j] >> 52) - 1023 - lowest, 0), last)
                squares[i, 0, kind, octave] += change_[j] * change_[j]
                if plain[j] > peaks[i, 0, kind, octave] or plain[j] != plain[j]:
                    peaks[i, 0, kind, octave] = plain[j]
                octave = min(max((scaled_bits[j] >> 52) - 1023 - lowest, 0), last)
                squares[i, 1, kind, octave] += own[j] * own[j]
                if scaled[j] > peaks[i, 1, kind, octave] or scaled[j] != scaled[j]:
                    peaks[i, 1, kind, octave] = scaled[j]
