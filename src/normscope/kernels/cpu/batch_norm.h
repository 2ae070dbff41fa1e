// Batch normalization in training, forward and backward, with its activation: the arithmetic of one stretch of memory.
//
//   z = (x - mean) * scale + offset,   y = act(z),   scale = weight * rstd,   offset = bias - low * scale
//
// The mean is a high and a low part: x - high is exact near the mean, where an offset would eat the digits. z is built
// from the same numbers by the same operations in the backward, so that the mask of the activation is the forward's,
// bit for bit, and none is stored.
#pragma once

#include "problem.h"

template <class A>
struct Constants {
    vec<A> mean, scale, offset;
};

template <int ACT, class V, class A>
INLINE V activate(V z, A slope) {
    if (ACT == RELU) return z <= A(0) ? V{} : z;  // so that NaN stays NaN
    if (ACT == LEAKY_RELU) return z > A(0) ? z : z * slope;
    return z;
}
template <int ACT, class V, class A>
INLINE V activation_gradient(V z, V g, A slope) {
    if (ACT == RELU) return z <= A(0) ? V{} : g;
    if (ACT == LEAKY_RELU) return z > A(0) ? g : g * slope;
    return g;
}

// What the backward needs of one vector: the input beyond the mean, and the cotangent before the activation. In the
// in-place mode, the normalized value before its scale (times weight), taken back from the output.
template <int ACT, bool FROM_OUTPUT, class A>
INLINE void read_back(vec<A> x, vec<A>& g, const Constants<A>& c, A slope, A inverse_slope, vec<A>& centred) {
    if (FROM_OUTPUT) {
        vec<A> z = ACT == LEAKY_RELU ? (x > A(0) ? x : x * inverse_slope) : x;
        g = activation_gradient<ACT>(x, g, slope);
        centred = z - c.mean;  // here the offset
    } else {
        centred = x - c.mean;
        g = activation_gradient<ACT>(fma(centred, c.scale, c.offset), g, slope);
    }
}

// The processor's own prefetcher stops at the end of a page: begin the next run for it, `jump` elements on.
template <class T>
INLINE void fetch_start(const T* p) {
    for (int line = 0; line < 4; line++) __builtin_prefetch((const char*)p + 64 * line, 0, 3);
}

// What is fetched beside a pass over a run, in elements on from where it is: `next`, what the next block's first pass will
// read; `write`, what this pass will write; 0 for nothing. `run` leads to the run that this pass goes to next.
struct Ahead {
    long next, run, write;
};
template <class T>
Ahead beside(const Problem& p, long next, long run) {
    return {next, run, p.hints.ahead / long(sizeof(T))};
}

// A line of memory that one run has begun and the next, its neighbour, is to end: only whole lines go past the cache, and a
// line that is written in two ways is written slowly.
template <class T>
struct Line {
    static constexpr long SIZE = 64 / sizeof(T);
    alignas(64) T values[SIZE] = {};
    bool begun = false;

    void put(T* into) const {
        for (long at = 0; at < SIZE; at += NORMSCOPE_BYTES / long(sizeof(T))) {
            vfloat part;
            memcpy(&part, values + at, sizeof part);
            stream((float*)(into + at), part);
        }
    }
};

// Write a run: `few(i, n)` returns at most a vector of values, `four(i)` writes four vectors of them. `goes_on`: the run
// that follows begins where this one ends, and is written next.
template <class T, bool STREAM, class Few, class Four>
INLINE void write_run(T* y, long n, Line<T>* line, bool goes_on, Few&& few, Four&& four) {
    constexpr long L = lanes<wide<T>>, SIZE = Line<T>::SIZE;
    auto put = [&](T* into, long i, long end) {
        for (; i < end; i += L, into += L)
            end - i < L ? store_first(into, end - i, few(i, end - i)) : store(into, few(i, L));
    };
    long i = 0, end = n;
    if constexpr (STREAM) {
        Line<T> own;
        if (!line || n < 2 * SIZE) goes_on = false, line = &own;
        i = long(-(uintptr_t)y % 64) / long(sizeof(T));
        if (i > n) i = n;
        if (line->begun) {
            put(line->values + SIZE - i, 0, i);
            line->put(y + i - SIZE);
            line->begun = false;
        } else {
            put(y, 0, i);
        }
        end = i + (n - i) / SIZE * SIZE;
        for (; i + 4 * L <= end; i += 4 * L) four(i);
        for (; i < end; i += SIZE) {
            put(line->values, i, i + SIZE);
            line->put(y + i);
        }
        line->begun = goes_on && end < n;
        put(line->begun ? line->values : y + end, end, n);
    } else {
        for (; i + 4 * L <= n; i += 4 * L) four(i);
        put(y + i, i, n);
    }
}

// ------------------------------------------------------------------------------------------ runs of one channel

template <class T>
INLINE void moments_of_run(const T* p, long n, long jump, wide<T> shift, vec<wide<T>>& sum, vec<wide<T>>& squares) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    vec<A> c = spread<A>(shift), s[4] = {}, q[4] = {};
    long i = 0;
    if (jump != n) fetch_start(p + jump);
    for (; i + 4 * L <= n; i += 4 * L) {
        vec<A> v[4];
        load_several<T, 4>(p + i, v);
        for (int u = 0; u < 4; u++) {
            vec<A> d = v[u] - c;
            s[u] += d;
            q[u] = fma(d, d, q[u]);
        }
    }
    for (; i + L <= n; i += L) {
        vec<A> d = load(p + i) - c;
        s[0] += d;
        q[0] = fma(d, d, q[0]);
    }
    if (i < n) {
        vec<A> d = load_first(p + i, n - i, c) - c;
        s[1] += d;
        q[1] = fma(d, d, q[1]);
    }
    sum += (s[0] + s[1]) + (s[2] + s[3]);
    squares += (q[0] + q[1]) + (q[2] + q[3]);
}

template <class T, int ACT, bool STREAM>
INLINE void normalize_run(const T* p, T* y, long n, Ahead ahead, Line<T>* line, bool goes_on, const Constants<wide<T>>& k,
                          wide<T> slope) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const Constants<A> c = k;
    auto few = [&](long i, long m) {
        const vec<A> x = m == L ? load(p + i) : load_first(p + i, m, c.mean);
        return activate<ACT>(fma(x - c.mean, c.scale, c.offset), slope);
    };
    write_run<T, STREAM>(y, n, line, goes_on, few, [&](long i) {
        const long on = i + ahead.write < n ? ahead.write : ahead.run - n + ahead.write;
        for (int u = 0; u < 4; u++) {
            if (u * L * sizeof(T) % 64 == 0) {
                if (!STREAM && ahead.write) __builtin_prefetch(y + i + u * L + on, 1, 3);
                if (ahead.next) __builtin_prefetch(p + i + u * L + ahead.next, 0, 2);
            }
        }
        vec<A> v[4];
        load_several<T, 4>(p + i, v);
        for (int u = 0; u < 4; u++) v[u] = activate<ACT>(fma(v[u] - c.mean, c.scale, c.offset), slope);
        store_several<T, 4, STREAM>(y + i, v);
    });
}

template <class T, int ACT, bool FROM_OUTPUT>
INLINE void gradient_sums_of_run(const T* x, const T* g, long n, long jump, const Constants<wide<T>>& k, wide<T> slope,
                          vec<wide<T>>& sum, vec<wide<T>>& along) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const Constants<A> c = k;
    const A inverse = A(1) / slope;
    vec<A> s[4] = {}, q[4] = {}, centred;
    long i = 0;
    if (jump != n) fetch_start(x + jump), fetch_start(g + jump);
    for (; i + 4 * L <= n; i += 4 * L) {
        vec<A> d[4], v[4];
        load_several<T, 4>(g + i, d);
        load_several<T, 4>(x + i, v);
        for (int u = 0; u < 4; u++) {
            read_back<ACT, FROM_OUTPUT, A>(v[u], d[u], c, slope, inverse, centred);
            s[u] += d[u];
            q[u] = fma(d[u], centred, q[u]);
        }
    }
    for (; i + L <= n; i += L) {
        vec<A> d = load(g + i);
        read_back<ACT, FROM_OUTPUT, A>(load(x + i), d, c, slope, inverse, centred);
        s[0] += d;
        q[0] = fma(d, centred, q[0]);
    }
    if (i < n) {
        vec<A> d = load_first(g + i, n - i, vec<A>{});
        read_back<ACT, FROM_OUTPUT, A>(load_first(x + i, n - i, c.mean), d, c, slope, inverse, centred);
        s[1] += d;
        q[1] = fma(d, centred, q[1]);
    }
    sum += (s[0] + s[1]) + (s[2] + s[3]);
    along += (q[0] + q[1]) + (q[2] + q[3]);
}

// The cotangent of x is scale * g + slant * centred + level.
template <class A>
struct Projection {
    vec<A> slant, level;
};

template <class T, int ACT, bool FROM_OUTPUT, bool STREAM>
INLINE void gradient_of_run(const T* x, const T* g, T* out, long n, Ahead ahead, Line<T>* line, bool goes_on,
                            const Constants<wide<T>>& k, const Projection<wide<T>>& projection, wide<T> slope) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const Constants<A> c = k;
    const Projection<A> j = projection;
    const A inverse = A(1) / slope;
    vec<A> centred;
    auto few = [&](long i, long m) {
        vec<A> d = m == L ? load(g + i) : load_first(g + i, m, vec<A>{});
        const vec<A> v = m == L ? load(x + i) : load_first(x + i, m, c.mean);
        read_back<ACT, FROM_OUTPUT, A>(v, d, c, slope, inverse, centred);
        return fma(centred, j.slant, fma(d, c.scale, j.level));
    };
    write_run<T, STREAM>(out, n, line, goes_on, few, [&](long i) {
        const long on = i + ahead.write < n ? ahead.write : ahead.run - n + ahead.write;
        for (int u = 0; u < 4; u++) {
            if (u * L * sizeof(T) % 64 == 0) {
                if (!STREAM && ahead.write) __builtin_prefetch(out + i + u * L + on, 1, 3);
                if (ahead.next) {
                    __builtin_prefetch(x + i + u * L + ahead.next, 0, 2);
                    __builtin_prefetch(g + i + u * L + ahead.next, 0, 2);
                }
            }
        }
        vec<A> d[4], v[4];
        load_several<T, 4>(g + i, d);
        load_several<T, 4>(x + i, v);
        for (int u = 0; u < 4; u++) {
            read_back<ACT, FROM_OUTPUT, A>(v[u], d[u], c, slope, inverse, centred);
            v[u] = fma(centred, j.slant, fma(d[u], c.scale, j.level));
        }
        store_several<T, 4, STREAM>(out + i, v);
    });
}

// ------------------------------------------------------------------------------------- bands of rows, over many columns
// A band is R rows, `stride` apart; U vectors of columns are taken of all of them, then the next ones: memory is read in
// the order in which it lies, and a column's numbers are fetched once for R rows. Sums of columns stand in arrays, as
// `load_several` deals out the values. TAIL: one vector of which only the first n lanes are there.

// One value a column.
template <class A>
struct Columns {
    A *mean, *scale, *offset, *slant, *level;
};

// Call `f` with <R, U, TAIL>(row, column, columns of a tail) for all rows and columns, in bands of R rows. A column's
// numbers go from row to row in every case.
template <class A, class F>
INLINE void over_bands(int most, long rows, long width, F&& f) {
    constexpr long L = lanes<A>;
    auto strip = [&]<int R>(long r) {
        long i = 0;
        for (; i + 2 * L <= width; i += 2 * L) f.template operator()<R, 2, false>(r, i, 0);
        for (; i + L <= width; i += L) f.template operator()<R, 1, false>(r, i, 0);
        if (i < width) f.template operator()<R, 1, true>(r, i, width - i);
    };
    long r = 0;
    for (; most == 4 && r + 4 <= rows; r += 4) strip.template operator()<4>(r);
    for (; most >= 2 && r + 2 <= rows; r += 2) strip.template operator()<2>(r);
    for (; r < rows; r++) strip.template operator()<1>(r);
}

// The values of a row, or the numbers of its columns; and back.
template <class T, int U, bool TAIL>
INLINE void row_of_band(const T* p, long n, const vec<wide<T>>* fill, vec<wide<T>>* v) {
    if constexpr (TAIL) {
        v[0] = load_first(p, n, fill ? fill[0] : vec<wide<T>>{});
    } else {
        load_several<T, U>(p, v);
    }
}
template <class T, int U, bool TAIL>
INLINE void constants_of_band(const wide<T>* p, long n, vec<wide<T>>* v) {
    if constexpr (TAIL) {
        v[0] = load_first(p, n, vec<wide<T>>{});
    } else {
        load_with<T, U>(p, v);
    }
}
template <class T, int U, bool TAIL, bool STREAM>
INLINE void put_row_of_band(T* p, long n, const vec<wide<T>>* v) {
    if constexpr (TAIL) {
        store_first(p, n, v[0]);
    } else {
        store_several<T, U, STREAM>(p, v);
    }
}
template <class T, int U>
INLINE void fetch_for_writing(T* p, long write) {
    for (long b = 0; b < U * lanes<wide<T>> * long(sizeof(T)); b += 64) __builtin_prefetch((char*)p + write + b, 1, 3);
}
template <class A, int U, bool TAIL>
INLINE void sums_of_band(const A* from, long n, vec<A>* sums) {
    for (int u = 0; u < U; u++) sums[u] = TAIL ? load_first(from, n, vec<A>{}) : load(from + u * lanes<A>);
}
template <class A, int U, bool TAIL>
INLINE void keep_sums_of_band(A* into, long n, const vec<A>* sums) {
    for (int u = 0; u < U; u++) TAIL ? store_first(into, n, sums[u]) : store(into + u * lanes<A>, sums[u]);
}

// Add sums of columns to those in double, in order, and begin anew.
template <class T>
void flush_sums(wide<T>* sums, double* totals, long n) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    long i = 0;
    for (; i + 2 * L <= n; i += 2 * L) {
        vec<A> v[2] = {load(sums + i), load(sums + i + L)};
        in_order<T, 2>(v);
        A ordered[2 * L];
        store(ordered, v[0]), store(ordered + L, v[1]);
        for (long k = 0; k < 2 * L; k++) totals[i + k] += ordered[k];
    }
    for (; i < n; i++) totals[i] += sums[i];
    memset(sums, 0, n * sizeof(A));
}

// How rows are taken. Out of a core's own cache, or where they are long, four at once: their columns' numbers are fetched a
// quarter as often. Short ones out of farther memory one after the other, in the order in which they lie: that is what the
// processor's own prefetchers go by; or in pairs, and the bytes so far behind a pair are fetched into the second cache, in
// that order.
constexpr long FETCHED_AHEAD = 8192;

struct Bands {
    int rows;
    bool fetch;
    Bands of(long stride, long width) const { return width < stride ? Bands{4, false} : *this; }  // of parts of rows
};

template <class T, int R, int U>
INLINE void fetch_band(Bands bands, const T* p, long stride, long row, long i) {
    if (R != 2 || !bands.fetch) return;
    const T* at = p + row * stride + i * R + FETCHED_AHEAD / long(sizeof(T));
    for (long b = 0; b < R * U * lanes<wide<T>>; b += 64 / sizeof(T)) __builtin_prefetch(at + b, 0, 2);
}

// Rows that are read whole and so narrow that the sums of all their columns stay in registers.
template <class T>
constexpr long NARROW = NORMSCOPE_BYTES == 64 && sizeof(wide<T>) == 4 ? 8 * lanes<wide<T>> : 0;

// Call `f` with <W> for a width of W vectors, of those that are narrow; or say that it is not.
template <class T, class F>
INLINE bool if_narrow(long stride, long width, F&& f) {
    constexpr long L = lanes<wide<T>>;
    if (NARROW<T> == 0 || width != stride || width > NARROW<T>) return false;
    if (width == 8 * L) return f.template operator()<8>(), true;
    if (width == 6 * L) return f.template operator()<6>(), true;
    if constexpr (!DEALT<T>) {
        if (width == 7 * L) return f.template operator()<7>(), true;
        if (width == 5 * L) return f.template operator()<5>(), true;
    }
    return false;
}

template <class T>
void moments_of_rows(const T* p, long stride, long rows, long width, Bands bands, const wide<T>* shift, wide<T>* sum,
                     wide<T>* squares) {
    using A = wide<T>;
    if (if_narrow<T>(stride, width, [&]<int W>() {
            vec<A> c[W], s[W], q[W], v[W];
            constants_of_band<T, W, false>(shift, 0, c);
            sums_of_band<A, W, false>(sum, 0, s);
            sums_of_band<A, W, false>(squares, 0, q);
            for (const T* end = p + rows * stride; p < end; p += stride) {
                row_of_band<T, W, false>(p, 0, nullptr, v);
                for (int u = 0; u < W; u++) {
                    const vec<A> d = v[u] - c[u];
                    s[u] += d;
                    q[u] = fma(d, d, q[u]);
                }
            }
            keep_sums_of_band<A, W, false>(sum, 0, s);
            keep_sums_of_band<A, W, false>(squares, 0, q);
        }))
        return;
    over_bands<A>(bands.of(stride, width).rows, rows, width, [&]<int R, int U, bool TAIL>(long row, long i, long n) {
        const T* at = p + row * stride + i;
        vec<A> c[U], s[U], q[U], v[U];
        constants_of_band<T, U, TAIL>(shift + i, n, c);
        sums_of_band<A, U, TAIL>(sum + i, n, s);
        sums_of_band<A, U, TAIL>(squares + i, n, q);
        fetch_band<T, R, U>(bands, p, stride, row, i);
        for (int r = 0; r < R; r++) {
            row_of_band<T, U, TAIL>(at + r * stride, n, c, v);
            for (int u = 0; u < U; u++) {
                const vec<A> d = v[u] - c[u];
                s[u] += d;
                q[u] = fma(d, d, q[u]);
            }
        }
        keep_sums_of_band<A, U, TAIL>(sum + i, n, s);
        keep_sums_of_band<A, U, TAIL>(squares + i, n, q);
    });
}

template <class T, int ACT, bool STREAM>
void normalize_rows(const T* p, T* y, long stride, long rows, long width, Bands bands, long write, const Columns<wide<T>>& k,
                    wide<T> slope) {
    using A = wide<T>;
    if (if_narrow<T>(stride, width, [&]<int W>() {
            vec<A> mean[W], scale[W], offset[W], v[W];
            constants_of_band<T, W, false>(k.mean, 0, mean);
            constants_of_band<T, W, false>(k.scale, 0, scale);
            constants_of_band<T, W, false>(k.offset, 0, offset);
            for (long at = 0; at < rows * stride; at += stride) {
                if (!STREAM && write) fetch_for_writing<T, W>(y + at, write);
                row_of_band<T, W, false>(p + at, 0, nullptr, v);
                for (int u = 0; u < W; u++) v[u] = activate<ACT>(fma(v[u] - mean[u], scale[u], offset[u]), slope);
                put_row_of_band<T, W, false, STREAM>(y + at, 0, v);
            }
        }))
        return;
    over_bands<A>(bands.of(stride, width).rows, rows, width, [&]<int R, int U, bool TAIL>(long row, long i, long n) {
        const long at = row * stride + i;
        vec<A> mean[U], scale[U], offset[U], v[U];
        constants_of_band<T, U, TAIL>(k.mean + i, n, mean);
        constants_of_band<T, U, TAIL>(k.scale + i, n, scale);
        constants_of_band<T, U, TAIL>(k.offset + i, n, offset);
        fetch_band<T, R, U>(bands, p, stride, row, i);
        for (int r = 0; r < R; r++) {
            if (!STREAM && write) fetch_for_writing<T, U>(y + at + r * stride, write);
            row_of_band<T, U, TAIL>(p + at + r * stride, n, mean, v);
            for (int u = 0; u < U; u++) v[u] = activate<ACT>(fma(v[u] - mean[u], scale[u], offset[u]), slope);
            put_row_of_band<T, U, TAIL, STREAM>(y + at + r * stride, n, v);
        }
    });
}

template <class T, int ACT, bool FROM_OUTPUT>
void gradient_sums_of_rows(const T* x, const T* g, long stride, long rows, long width, Bands bands,
                           const Columns<wide<T>>& k, wide<T> slope, wide<T>* sum, wide<T>* along) {
    using A = wide<T>;
    const A inverse = A(1) / slope;
    if (if_narrow<T>(stride, width, [&]<int W>() {
            vec<A> mean[W], scale[W], offset[W], s[W], q[W], d[2], v[2], centred;
            constants_of_band<T, W, false>(k.mean, 0, mean);
            constants_of_band<T, W, false>(k.scale, 0, scale);
            constants_of_band<T, W, false>(k.offset, 0, offset);
            sums_of_band<A, W, false>(sum, 0, s);
            sums_of_band<A, W, false>(along, 0, q);
            for (long at = 0; at < rows * stride; at += stride) {
                for (int u = 0; u < W; u += 2) {
                    const int both = u + 1 < W;
                    if (both) {
                        load_several<T, 2>(g + at + u * lanes<A>, d);
                        load_several<T, 2>(x + at + u * lanes<A>, v);
                    } else {
                        d[0] = load(g + at + u * lanes<A>);
                        v[0] = load(x + at + u * lanes<A>);
                    }
                    for (int i = 0; i <= both; i++) {
                        const Constants<A> c{mean[u + i], scale[u + i], offset[u + i]};
                        read_back<ACT, FROM_OUTPUT, A>(v[i], d[i], c, slope, inverse, centred);
                        s[u + i] += d[i];
                        q[u + i] = fma(d[i], centred, q[u + i]);
                    }
                }
            }
            keep_sums_of_band<A, W, false>(sum, 0, s);
            keep_sums_of_band<A, W, false>(along, 0, q);
        }))
        return;
    over_bands<A>(bands.of(stride, width).rows, rows, width, [&]<int R, int U, bool TAIL>(long row, long i, long n) {
        const long at = row * stride + i;
        vec<A> mean[U], scale[U], offset[U], s[U], q[U], d[U], v[U], centred;
        sums_of_band<A, U, TAIL>(sum + i, n, s);
        sums_of_band<A, U, TAIL>(along + i, n, q);
        constants_of_band<T, U, TAIL>(k.mean + i, n, mean);
        constants_of_band<T, U, TAIL>(k.scale + i, n, scale);
        constants_of_band<T, U, TAIL>(k.offset + i, n, offset);
        fetch_band<T, R, U>(bands, x, stride, row, i);
        fetch_band<T, R, U>(bands, g, stride, row, i);
        for (int r = 0; r < R; r++) {
            row_of_band<T, U, TAIL>(g + at + r * stride, n, nullptr, d);
            row_of_band<T, U, TAIL>(x + at + r * stride, n, mean, v);
            for (int u = 0; u < U; u++) {
                read_back<ACT, FROM_OUTPUT, A>(v[u], d[u], Constants<A>{mean[u], scale[u], offset[u]}, slope, inverse, centred);
                s[u] += d[u];
                q[u] = fma(d[u], centred, q[u]);
            }
        }
        keep_sums_of_band<A, U, TAIL>(sum + i, n, s);
        keep_sums_of_band<A, U, TAIL>(along + i, n, q);
    });
}

template <class T, int ACT, bool FROM_OUTPUT, bool STREAM>
void gradient_of_rows(const T* x, const T* g, T* out, long stride, long rows, long width, Bands bands, long write,
                      const Columns<wide<T>>& k, wide<T> slope) {
    using A = wide<T>;
    const A inverse = A(1) / slope;
    over_bands<A>(bands.of(stride, width).rows, rows, width, [&]<int R, int U, bool TAIL>(long row, long i, long n) {
        const long at = row * stride + i;
        vec<A> mean[U], scale[U], offset[U], slant[U], level[U], d[U], v[U], centred;
        constants_of_band<T, U, TAIL>(k.mean + i, n, mean);
        constants_of_band<T, U, TAIL>(k.scale + i, n, scale);
        constants_of_band<T, U, TAIL>(k.offset + i, n, offset);
        constants_of_band<T, U, TAIL>(k.slant + i, n, slant);
        constants_of_band<T, U, TAIL>(k.level + i, n, level);
        fetch_band<T, R, U>(bands, x, stride, row, i);
        fetch_band<T, R, U>(bands, g, stride, row, i);
        for (int r = 0; r < R; r++) {
            if (!STREAM && write) fetch_for_writing<T, U>(out + at + r * stride, write);
            row_of_band<T, U, TAIL>(g + at + r * stride, n, nullptr, d);
            row_of_band<T, U, TAIL>(x + at + r * stride, n, mean, v);
            for (int u = 0; u < U; u++) {
                read_back<ACT, FROM_OUTPUT, A>(v[u], d[u], Constants<A>{mean[u], scale[u], offset[u]}, slope, inverse, centred);
                v[u] = fma(centred, slant[u], fma(d[u], scale[u], level[u]));
            }
            put_row_of_band<T, U, TAIL, STREAM>(out + at + r * stride, n, v);
        }
    });
}
