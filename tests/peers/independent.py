#!/usr/bin/env python3
"""Checks factors of svdjob with nothing of svdjob: numpy, scipy and the input alone.

  python3 tests/peers/independent.py FACTORS_DIR RATINGS.csv --rows userId --columns movieId --values rating

FACTORS_DIR is what svdjob wrote: U.npy, S.npy, Vt.npy, rows.csv, columns.csv, manifest.json. Computes, in float64,

  the residual of every triplet   sqrt(|A v - s u|^2 + |A^T u - s v|^2) / s
  how orthonormal U and V are     max |U^T U - I|, max |V^T V - I|
  the singular values             by scipy's svds (ARPACK)

and exits with 1 when `sigma` or `residuals` of manifest.json are more than 5 % from what it finds (residuals below
--floor count as zero), or when the singular values are more than 5 % from scipy's.
"""
import argparse
import csv
import gzip
import json
import os
import sys

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as sl


def labels(path):
    """The labels of rows.csv or columns.csv in the order of the factors: the column `label`, or the last one."""
    with open(path, newline="", encoding="utf-8") as f:
        lines = csv.reader(f)
        header = next(lines)
        at = header.index("label") if "label" in header else len(header) - 1
        return {line[at]: i for i, line in enumerate(lines)}


def matrix(path, field_names, rows, columns, duplicates):
    """The triples of a delimited file as a sparse matrix in the order of `rows` and `columns`."""
    opened = gzip.open if path.endswith(".gz") else open
    i, j, v = [], [], []
    with opened(path, "rt", newline="", encoding="utf-8") as f:
        first = f.readline()
        delimiter = max(",\t;|", key=first.count)
        header = next(csv.reader([first], delimiter=delimiter))
        places = []
        for name in field_names:
            if name is not None and name not in header:
                sys.exit(f"{path} has no field {name}; its fields are {', '.join(header)}")
            places.append(None if name is None else header.index(name))
        at_row, at_column, at_value = places
        for line in csv.reader(f, delimiter=delimiter):
            if not line:
                continue
            try:
                i.append(rows[line[at_row]])
                j.append(columns[line[at_column]])
            except KeyError as unknown:
                sys.exit(f"{path} has the label {unknown}, which the factors do not know")
            v.append(1.0 if at_value is None else float(line[at_value]))
    i, j, v = np.array(i), np.array(j), np.array(v)
    if duplicates == "last":  # the last line of each pair
        pairs = i.astype(np.int64) * len(columns) + j
        _, last = np.unique(pairs[::-1], return_index=True)
        last = len(pairs) - 1 - last
        i, j, v = i[last], j[last], v[last]
    shape = (len(rows), len(columns))
    a = sp.csr_matrix((v, (i, j)), shape=shape)
    if duplicates == "mean":
        count = sp.csr_matrix((np.ones_like(v), (i, j)), shape=shape)
        a.data /= count.data  # both have the same pattern, in the same order
    if duplicates == "error" and a.nnz != len(v):
        sys.exit(f"{path} has {len(v) - a.nnz} pairs more than once; see --duplicates")
    return a


def apart(found, claimed, floor=0.0):
    """Relative distance; numbers that are both below `floor` agree."""
    found, claimed = np.asarray(found, float), np.asarray(claimed, float)
    distance = np.abs(found - claimed) / np.maximum(np.abs(found), np.finfo(float).tiny)
    return np.where((found < floor) & (claimed < floor), 0.0, distance)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("factors", metavar="FACTORS_DIR")
    ap.add_argument("ratings", metavar="RATINGS.csv")
    ap.add_argument("--rows", required=True, metavar="FIELD")
    ap.add_argument("--columns", required=True, metavar="FIELD")
    ap.add_argument("--values", metavar="FIELD", help="without it every line counts 1")
    ap.add_argument("--duplicates", choices=["error", "sum", "mean", "last"], default="error")
    ap.add_argument("--tolerance", type=float, default=0.05, help="relative (default 0.05)")
    ap.add_argument("--floor", type=float, default=1e-5,
                    help="residuals below it are rounding and count as equal (default 1e-5)")
    ap.add_argument("--no-scipy", action="store_true", help="leave out svds, which takes long on a large matrix")
    args = ap.parse_args()

    def part(name):
        return os.path.join(args.factors, name)

    u, s, vt = (np.load(part(name)).astype(np.float64) for name in ("U.npy", "S.npy", "Vt.npy"))
    s = s.ravel()
    with open(part("manifest.json"), encoding="utf-8") as f:
        manifest = json.load(f)
    rows, columns = labels(part("rows.csv")), labels(part("columns.csv"))
    k = len(s)
    if u.shape != (len(rows), k) or vt.shape != (k, len(columns)):
        sys.exit(f"shapes disagree: U {u.shape}, S {s.shape}, Vt {vt.shape}, "
                 f"{len(rows)} row labels, {len(columns)} column labels")
    a = matrix(args.ratings, (args.rows, args.columns, args.values), rows, columns, args.duplicates)

    left = np.linalg.norm(a @ vt.T - u * s, axis=0)
    right = np.linalg.norm(a.T @ u - vt.T * s, axis=0)
    residuals = np.hypot(left, right) / s
    orthogonality = [np.abs(x - np.eye(k)).max() for x in (u.T @ u, vt @ vt.T)]
    scipys = None
    if not args.no_scipy:
        if k < min(a.shape) - 1:
            start = np.random.default_rng(1).standard_normal(min(a.shape))
            scipys = np.sort(sl.svds(a, k=k, tol=1e-10, v0=start, return_singular_vectors=False))[::-1]
        else:
            scipys = np.linalg.svd(a.toarray(), compute_uv=False)[:k]

    print(f"{a.shape[0]} x {a.shape[1]}, {a.nnz} entries, rank {k}")
    print(f"orthonormality: max |U^T U - I| {orthogonality[0]:.1e}, max |V^T V - I| {orthogonality[1]:.1e}")
    print(f"{'':>4} {'sigma':>14} {'scipy':>14} {'residual':>10} {'manifest':>10}")
    for i in range(k):
        reference = f"{scipys[i]:14.6f}" if scipys is not None else f"{'-':>14}"
        claimed = manifest["residuals"][i] if i < len(manifest["residuals"]) else float("nan")
        print(f"{i + 1:4} {s[i]:14.6f} {reference} {residuals[i]:10.2e} {claimed:10.2e}")

    wrong = []
    if not max(orthogonality) < 1e-3:
        wrong.append(f"U or V is not orthonormal: {max(orthogonality):.1e}")
    checks = [("sigma of manifest.json", s, manifest["sigma"], 0.0),
              ("residuals of manifest.json", residuals, manifest["residuals"], args.floor)]
    if scipys is not None:
        checks.append(("singular values of scipy", s, scipys, 0.0))
    for what, found, claimed, floor in checks:
        if len(claimed) != k:
            wrong.append(f"{what}: {len(claimed)} of them for rank {k}")
            continue
        distance = apart(found, claimed, floor)
        worst = int(np.argmax(np.where(np.isnan(distance), np.inf, distance)))
        if not distance[worst] <= args.tolerance:
            wrong.append(f"{what}: number {worst + 1} is {100 * distance[worst]:.1f} % from what the factors give")
    for line in wrong:
        print(f"DISAGREES: {line}")
    if wrong:
        sys.exit(1)
    print(f"agrees within {100 * args.tolerance:g} %")


if __name__ == "__main__":
    main()
