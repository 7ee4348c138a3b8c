"""Sums along rays through a grid, with the weights of ``operators.tomography.rays`` computed on the way, and their
transpose.

Images are (rows, pixels of a row, columns), several images side by side as columns: a ray meets the same pixels of all
of them, so that its weights serve them all. Rows have a border of one more pixel at either end. Eight columns are
written out, since compilers keep them in registers then. Blocks of rows stay in the cache while all rays pass through
them; within a row every image sums its rays in their order, so that bits do not depend on who takes which row.
"""

from __future__ import annotations

from learnreg.kernels.jit import compiled

__all__ = ["back_project", "back_project_wide", "project", "project_wide", "row_squares"]

_BLOCK = 16


@compiled
def _rows_inside(offset, slope, n, first, stop):
    """The rows of first ... stop - 1 in which -1 < offset + i slope < n."""
    if slope == 0.0:
        return first, (stop if -1.0 < offset < n else first)
    enter, leave = (-1.0 - offset) / slope, (n - offset) / slope
    if enter > leave:
        enter, leave = leave, enter
    low = first if enter < first else (stop if enter >= stop else int(enter))
    high = stop if leave >= stop else (first if leave < first else int(leave) + 1)
    while low < high and not -1.0 < offset + low * slope < n:
        low += 1
    while low < high and not -1.0 < offset + (high - 1) * slope < n:
        high -= 1
    return low, high


@compiled
def _pair(t, gap, inverse, n):
    """The first of two neighbouring pixels of a row with a border, and the weights of both."""
    pixel = min(int(t + 1.0), n)  # which t + 1 may exceed by rounding
    share = min(max(t + 1.0 - pixel - gap, 0.0) * inverse, 1.0)
    return pixel, 1.0 - share, share


@compiled
def _add_eight(row, k, weight, y):
    """weight · y is added to columns k ... k + 7 of a row."""
    y0, y1, y2, y3, y4, y5, y6, y7 = y
    row[k] += weight * y0
    row[k + 1] += weight * y1
    row[k + 2] += weight * y2
    row[k + 3] += weight * y3
    row[k + 4] += weight * y4
    row[k + 5] += weight * y5
    row[k + 6] += weight * y6
    row[k + 7] += weight * y7


@compiled
def project(images, offsets, slopes, gaps, inverses, first, stop, out):
    """Rays first ... stop - 1: their sums (rays, columns) are added to ``out``, column by column."""
    n = images.shape[0]
    number = images.dtype.type
    for column in range(images.shape[2]):
        for block in range(0, n, _BLOCK):
            for r in range(first, stop):
                total = number(0.0)
                low, high = _rows_inside(offsets[r], slopes[r], n, block, min(block + _BLOCK, n))
                for i in range(low, high):
                    pixel, u, w = _pair(offsets[r] + i * slopes[r], gaps[r], inverses[r], n)
                    total += number(u) * images[i, pixel, column] + number(w) * images[i, pixel + 1, column]
                out[r, column] += total


@compiled
def back_project(sums, offsets, slopes, gaps, inverses, first, stop, out):
    """Rows first ... stop - 1 of images: what the rays give them is added to ``out``, column by column."""
    n = out.shape[0]
    number = out.dtype.type
    for column in range(out.shape[2]):
        for block in range(first, stop, _BLOCK):
            for r in range(offsets.shape[0]):
                value = sums[r, column]
                low, high = _rows_inside(offsets[r], slopes[r], n, block, min(block + _BLOCK, stop))
                for i in range(low, high):
                    pixel, u, w = _pair(offsets[r] + i * slopes[r], gaps[r], inverses[r], n)
                    out[i, pixel, column] += number(u) * value
                    out[i, pixel + 1, column] += number(w) * value


@compiled
def project_wide(images, offsets, slopes, gaps, inverses, first, stop, out):
    """As ``project``, eight columns at a time; their number is a multiple of it."""
    n = images.shape[0]
    number = images.dtype.type
    for k in range(0, images.shape[2], 8):
        for block in range(0, n, _BLOCK):
            for r in range(first, stop):
                s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = number(0.0)
                low, high = _rows_inside(offsets[r], slopes[r], n, block, min(block + _BLOCK, n))
                for i in range(low, high):
                    pixel, u_, w_ = _pair(offsets[r] + i * slopes[r], gaps[r], inverses[r], n)
                    u, w = number(u_), number(w_)
                    a, b = images[i, pixel], images[i, pixel + 1]
                    s0 += u * a[k] + w * b[k]
                    s1 += u * a[k + 1] + w * b[k + 1]
                    s2 += u * a[k + 2] + w * b[k + 2]
                    s3 += u * a[k + 3] + w * b[k + 3]
                    s4 += u * a[k + 4] + w * b[k + 4]
                    s5 += u * a[k + 5] + w * b[k + 5]
                    s6 += u * a[k + 6] + w * b[k + 6]
                    s7 += u * a[k + 7] + w * b[k + 7]
                _add_eight(out[r], k, number(1.0), (s0, s1, s2, s3, s4, s5, s6, s7))


@compiled
def back_project_wide(sums, offsets, slopes, gaps, inverses, first, stop, out):
    """As ``back_project``, eight columns at a time; their number is a multiple of it."""
    n = out.shape[0]
    number = out.dtype.type
    for k in range(0, out.shape[2], 8):
        for block in range(first, stop, _BLOCK):
            for r in range(offsets.shape[0]):
                s = sums[r]
                y = (s[k], s[k + 1], s[k + 2], s[k + 3], s[k + 4], s[k + 5], s[k + 6], s[k + 7])
                low, high = _rows_inside(offsets[r], slopes[r], n, block, min(block + _BLOCK, stop))
                for i in range(low, high):
                    pixel, u_, w_ = _pair(offsets[r] + i * slopes[r], gaps[r], inverses[r], n)
                    _add_eight(out[i, pixel], k, number(u_), y)
                    _add_eight(out[i, pixel + 1], k, number(w_), y)


@compiled
def row_squares(n, offsets, slopes, gaps, inverses, out):
    """Sums of squared weights of each ray."""
    for r in range(offsets.shape[0]):
        low, high = _rows_inside(offsets[r], slopes[r], n, 0, n)
        for i in range(low, high):
            pixel, u, w = _pair(offsets[r] + i * slopes[r], gaps[r], inverses[r], n)
            out[r] += (u * u if pixel > 0 else 0.0) + (w * w if pixel < n else 0.0)
