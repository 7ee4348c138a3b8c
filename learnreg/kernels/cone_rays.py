"""Sums along the rays of a cone through a grid of voxels, by Joseph's weights, and their transpose.

A ray is followed from slab to slab along the axis of the plane of rotation that it is closer to: volumes are (slabs,
across, along the axis of rotation). All rays of a detector column meet a slab at one place across, so that two lines of
voxels, blended once, serve them all. Sums of a view are (columns, rows). Rays of a slab add up in the order of views,
columns and rows whoever takes it.
"""

from __future__ import annotations

import math

import numpy as np

from learnreg.kernels.jit import compiled

__all__ = ["back_project", "project"]


@compiled
def _across(source, detector, k, n):
    """Where the rays to a detector column meet slab k: the share of the way to the detector, the first of two lines of
    voxels, and their weights; a line beyond the volume counts nothing. Weights of -1: neither is met."""
    share = (k - source[0]) / (detector[0] - source[0])
    t = source[1] + share * (detector[1] - source[1])
    if not -1.0 < t < n:
        return share, 0, -1.0, -1.0
    line = math.floor(t)
    w = t - line
    if line < 0:
        return share, 0, w, 0.0
    if line > n - 2:
        return share, n - 2, 0.0, 1.0 - w
    return share, line, 1.0 - w, w


@compiled
def _rows_met(start, step, n, rows):
    """The detector rows r whose rays meet the slab at -1 < start + r step < n; step > 0."""
    low, high = (-1.0 - start) / step, (n - start) / step
    first = 0 if low < 0.0 else (rows if low >= rows else int(low))
    stop = rows if high >= rows else (0 if high < 0.0 else int(high) + 1)
    while first < stop and not start + first * step > -1.0:
        first += 1
    while first < stop and not start + (stop - 1) * step < n:
        stop -= 1
    return first, stop


@compiled
def project(volume, sources, detectors, driven, pitch, squared, first, stop, out):
    """Views first ... stop - 1: their sums (views, columns, rows) are added to ``out``, in units of a slab.

    sources (views, 2), detectors (views, columns, 2): along the slabs and across, in voxels from the first one. driven
    (views, columns): the columns to follow. pitch: of detector rows. squared: squares of the weights in their place."""
    n = volume.shape[0]
    columns, rows = out.shape[1:]
    number = volume.dtype.type
    one = number(1.0)
    line = np.zeros(n + 2, volume.dtype)
    for view in range(first, stop):
        for k in range(n):
            for q in range(columns):
                if not driven[view, q]:
                    continue
                share, j, u_, w_ = _across(sources[view], detectors[view, q], k, n)
                if u_ < 0.0:
                    continue
                u, w = (number(u_ * u_), number(w_ * w_)) if squared else (number(u_), number(w_))
                a, b = volume[k, j], volume[k, j + 1]
                for i in range(n):
                    line[i + 1] = u * a[i] + w * b[i]
                step = share * pitch
                start = 0.5 * (n - 1) - 0.5 * (rows - 1) * step
                low, high = _rows_met(start, step, n, rows)
                y = out[view, q]
                for r in range(low, high):
                    t = start + r * step + 1.0
                    pixel = min(max(int(t), 0), n)
                    w = number(t - pixel)
                    u = one - w
                    if squared:
                        u, w = u * u, w * w
                    y[r] += u * line[pixel] + w * line[pixel + 1]


@compiled
def back_project(sums, sources, detectors, driven, pitch, first, stop, out):
    """Slabs first ... stop - 1: what the rays give them is added to ``out``; arguments as those of ``project``."""
    n = out.shape[0]
    views, columns, rows = sums.shape
    number = out.dtype.type
    one = number(1.0)
    line = np.zeros(n + 2, out.dtype)
    for view in range(views):
        for k in range(first, stop):
            for q in range(columns):
                if not driven[view, q]:
                    continue
                share, j, u_, w_ = _across(sources[view], detectors[view, q], k, n)
                if u_ < 0.0:
                    continue
                step = share * pitch
                start = 0.5 * (n - 1) - 0.5 * (rows - 1) * step
                low, high = _rows_met(start, step, n, rows)
                if low >= high:
                    continue
                y = sums[view, q]
                line[:] = 0.0
                for r in range(low, high):
                    t = start + r * step + 1.0
                    pixel = min(max(int(t), 0), n)
                    w = number(t - pixel)
                    line[pixel] += (one - w) * y[r]
                    line[pixel + 1] += w * y[r]
                u, w = number(u_), number(w_)
                a, b = out[k, j], out[k, j + 1]
                for i in range(n):
                    a[i] += u * line[i + 1]
                    b[i] += w * line[i + 1]
