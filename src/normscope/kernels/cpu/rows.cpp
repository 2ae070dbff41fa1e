// Forward and backward over rows: each row is read twice, the second time from the cache as far as that goes.
//
// Sums over a row go to double by stretches, sums over the rows of a column by blocks of rows; blocks and their order
// rest on the sizes alone, so no bit depends on the number of threads.
#include "rows.h"

#include "channels.h"
#include "kernel.h"

namespace {

constexpr long ITEM_BYTES = 32768;  // rows of one work item
constexpr long BLOCKS = 64;         // blocks of rows that sums of columns are taken by, at most
constexpr long FEW_BLOCKS = 8;      // the same where there are few rows

template <class A>
INLINE Constants<A> constants_of_row(const Problem& p, long r) {
    A mean, scale, offset;
    constants_of<A, false>(p, r, mean, scale, offset);
    return {spread<A>(mean), spread<A>(scale), spread<A>(offset)};
}

int threads_of(const RowProblem& p, long bytes) {
    return bytes * p.rows() * p.size() < SERIAL_BYTES ? 1 : p.threads;
}

// Stretches of rows, each for one thread: some rows at least, since nothing fetches the first of a stretch.
template <class F>
void over_items(const RowProblem& p, long bytes, F&& work) {
    const int threads = threads_of(p, bytes);
    const long most = threads == 1 ? p.rows() : p.rows() / (4 * threads);
    const long per = clamp(clamp(ITEM_BYTES / (p.size() * bytes), 16, p.rows()), 1, most < 1 ? 1 : most);
    parallel(p, threads, ceil_div(p.rows(), per), [&](long item) {
        work(item * per, (item + 1) * per < p.rows() ? (item + 1) * per : p.rows());
    });
}

// ------------------------------------------------------------------------------------------------- gains of columns
// Gains, shifts and sums of columns lie as `load_several` deals out the values: in whole tiles dealt, behind them in order.

template <class T>
void dealt(const PerChannel& from, long at, long n, double otherwise, wide<T>* into) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    for (long i = 0; i < n; i++) into[i] = (A)from.get(at + i, otherwise);
    for (long i = 0; i + 4 * L <= n; i += 4 * L) {
        vec<A> v[4];
        load_with<T, 4>(into + i, v);
        for (int u = 0; u < 4; u++) store(into + i + u * L, v[u]);
    }
}

// Add sums of columns to those in double, in order, and begin anew.
template <class T>
void flush(wide<T>* sums, double* totals, long n) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    long i = 0;
    for (; i + 4 * L <= n; i += 4 * L) {
        vec<A> v[4];
        for (int u = 0; u < 4; u++) v[u] = load(sums + i + u * L);
        in_order<T, 4>(v);
        for (int u = 0; u < 4; u++)
            for (long k = 0; k < L; k++) totals[i + u * L + k] += v[u][k];
    }
    for (; i < n; i++) totals[i] += sums[i];
    memset(sums, 0, n * sizeof(A));
}

template <bool GAIN, bool SHIFT, class V>
INLINE V scaled(V xhat, V gain, V shift) {
    if constexpr (GAIN && SHIFT) return fma(xhat, gain, shift);
    if constexpr (GAIN) return xhat * gain;
    if constexpr (SHIFT) return xhat + shift;
    return xhat;
}

template <class T, bool GAIN, bool SHIFT, bool STREAM>
void normalize_columns(const T* p, T* y, long n, const wide<T>* gain, const wide<T>* shift, const Constants<wide<T>>& k,
                       long write) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const Constants<A> c = k;
    const vec<A> none{};
    long i = 0;
    for (; i + 4 * L <= n; i += 4 * L) {
        vec<A> v[4];
        for (int u = 0; u < 4; u++) {
            if (u * L * sizeof(T) % 64 == 0) {
                if (!STREAM && write) __builtin_prefetch((char*)(y + i + u * L) + write, 1, 3);
                __builtin_prefetch(p + i + u * L + n, 0, 2);  // of the next row, whose first pass is to find it there
            }
        }
        load_several<T, 4>(p + i, v);
        for (int u = 0; u < 4; u++)
            v[u] = scaled<GAIN, SHIFT>(fma(v[u] - c.mean, c.scale, c.offset), GAIN ? load(gain + i + u * L) : none,
                                       SHIFT ? load(shift + i + u * L) : none);
        store_several<T, 4, STREAM>(y + i, v);
    }
    for (long left = n - i; left > 0; left -= L, i += L) {
        const long m = left < L ? left : L;
        const vec<A> v = load_first(p + i, m, c.mean);
        store_first(y + i, m,
                    scaled<GAIN, SHIFT>(fma(v - c.mean, c.scale, c.offset), GAIN ? load_first(gain + i, m, none) : none,
                                        SHIFT ? load_first(shift + i, m, none) : none));
    }
}

template <class T, bool GAIN>
void gradient_sums_of_columns(const T* x, const T* g, long n, const wide<T>* gain, wide<T> mean, vec<wide<T>>& sum,
                              vec<wide<T>>& along) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const vec<A> c = spread<A>(mean), none{};
    vec<A> s[4] = {}, q[4] = {};
    long i = 0;
    for (; i + 4 * L <= n; i += 4 * L) {
        vec<A> d[4], v[4];
        load_several<T, 4>(g + i, d);
        load_several<T, 4>(x + i, v);
        for (int u = 0; u < 4; u++) {
            if (GAIN) d[u] = d[u] * load(gain + i + u * L);
            s[u] += d[u];
            q[u] = fma(d[u], v[u] - c, q[u]);
        }
    }
    for (long left = n - i; left > 0; left -= L, i += L) {
        const long m = left < L ? left : L;
        vec<A> d = load_first(g + i, m, none);
        if (GAIN) d = d * load_first(gain + i, m, none);
        s[0] += d;
        q[0] = fma(d, load_first(x + i, m, c) - c, q[0]);
    }
    sum += (s[0] + s[1]) + (s[2] + s[3]);
    along += (q[0] + q[1]) + (q[2] + q[3]);
}

template <class T, bool GAIN, bool OUT, bool SUMS, bool STREAM>
void gradient_of_columns(const T* x, const T* g, T* out, long n, const wide<T>* gain, const Constants<wide<T>>& k,
                         const Projection<wide<T>>& projection, wide<T>* g_gain, wide<T>* g_shift, long write) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const Constants<A> c = k;
    const Projection<A> j = projection;
    const vec<A> none{};
    long i = 0;
    for (; i + 4 * L <= n; i += 4 * L) {
        vec<A> d[4], v[4];
        for (int u = 0; u < 4; u++) {
            if (u * L * sizeof(T) % 64 == 0) {
                if (OUT && !STREAM && write) __builtin_prefetch((char*)(out + i + u * L) + write, 1, 3);
                __builtin_prefetch(x + i + u * L + n, 0, 2);
                __builtin_prefetch(g + i + u * L + n, 0, 2);
            }
        }
        load_several<T, 4>(g + i, d);
        load_several<T, 4>(x + i, v);
        for (int u = 0; u < 4; u++) {
            v[u] = v[u] - c.mean;
            if (SUMS) {
                store(g_gain + i + u * L, fma(d[u], fma(v[u], c.scale, c.offset), load(g_gain + i + u * L)));
                store(g_shift + i + u * L, load(g_shift + i + u * L) + d[u]);
            }
            if (GAIN) d[u] = d[u] * load(gain + i + u * L);
            v[u] = fma(v[u], j.slant, fma(d[u], c.scale, j.level));
        }
        if (OUT) store_several<T, 4, STREAM>(out + i, v);
    }
    for (long left = n - i; left > 0; left -= L, i += L) {
        const long m = left < L ? left : L;
        vec<A> d = load_first(g + i, m, none);
        const vec<A> v = load_first(x + i, m, c.mean) - c.mean;
        if (SUMS) {
            store_first(g_gain + i, m, fma(d, fma(v, c.scale, c.offset), load_first(g_gain + i, m, none)));
            store_first(g_shift + i, m, load_first(g_shift + i, m, none) + d);
        }
        if (GAIN) d = d * load_first(gain + i, m, none);
        if (OUT) store_first(out + i, m, fma(v, j.slant, fma(d, c.scale, j.level)));
    }
}

// ------------------------------------------------------------------------------------------------------------ forward

template <class T>
void keep_power(const RowProblem& p, long r, const T* x, double squares) {
    using A = wide<T>;
    const Saved<A> saved(p.saved, p.rows());
    double power = squares / double(p.size());
    if (!(power < 1e37) || (power < 1e-30 && p.eps < 1e-20)) {
        power = 0;
        for (long i = 0; i < p.size(); i++) power += double(widen(x[i])) * double(widen(x[i]));
        power /= double(p.size());
    }
    saved.mean[r] = saved.low[r] = saved.offset[r] = 0;
    saved.rstd[r] = saved.scale[r] = (A)(1 / std::sqrt(power + p.eps));
    saved.var[r] = (A)power;
}

// The sums of a row, of which a stretch is added at a time.
template <class T>
struct Moments {
    wide<T> near = 0;
    double sum = 0, squares = 0;

    Moments(const RowProblem& p, long r) {
        if (p.centred) near = shift_of((const T*)p.x + r * p.size(), p.size() < 16 ? p.size() : 16, 1);
    }
    void add(const T* x, long n) {
        for (long at = 0; at < n; at += FLUSH) {
            const long m = n - at < FLUSH ? n - at : FLUSH;
            vec<wide<T>> s{}, q{};
            moments_of_run<T>(x + at, m, m, near, s, q);
            sum += total(s);
            squares += total(q);
        }
    }
    void finish(const RowProblem& p, long r) const {
        p.centred ? finish_forward<T>(p, r, near, sum, squares) : keep_power(p, r, (const T*)p.x + r * p.size(), squares);
    }
};

template <class T, bool GAIN, bool SHIFT, bool STREAM>
void forward_of_columns(const RowProblem& p) {
    using A = wide<T>;
    const long n = p.size(), all = p.groups * n, per = clamp(ITEM_BYTES / (n * long(sizeof(T))), 1, p.rows());
    Scratch scratch(2 * (all * sizeof(A) + 64));
    A *gain = GAIN ? scratch.take<A>(all) : nullptr, *shift = SHIFT ? scratch.take<A>(all) : nullptr;
    for (long k = 0; k < all; k += n) {
        if (GAIN) dealt<T>(p.gain, k, n, 1, gain + k);
        if (SHIFT) dealt<T>(p.shift, k, n, 0, shift + k);
    }
    parallel(p, threads_of(p, sizeof(T)), ceil_div(p.rows(), per), [&](long item) {
        for (long r = item * per; r < p.rows() && r < (item + 1) * per; r++) {
            Moments<T> moments(p, r);
            moments.add((const T*)p.x + r * n, n);
            moments.finish(p, r);
            const long k = r % p.groups * n;
            normalize_columns<T, GAIN, SHIFT, STREAM>((const T*)p.x + r * n, (T*)p.out + r * n, n, gain + (GAIN ? k : 0),
                                                      shift + (SHIFT ? k : 0), constants_of_row<A>(p, r), p.hints.ahead);
        }
        end_of_stream();
    });
}

// Rows of some size: read whole, then written whole. To read a stretch of the next row between the stretches that are
// written takes longer: memory is slow at stretches of two places in turn.
template <class T, bool STREAM>
void forward_of_spans(const RowProblem& p) {
    using A = wide<T>;
    const long n = p.size();
    over_items(p, sizeof(T), [&](long from, long to) {
        const Saved<A> saved(p.saved, p.rows());
        const long several = clamp(FLUSH / p.span, 1, p.gains());  // spans that are summed at once, in every row alike
        for (long r = from; r < to; r++) {
            const T* x = (const T*)p.x + r * n;
            Moments<T> moments(p, r);
            for (long k = 0; k < p.gains(); k += several)
                moments.add(x + k * p.span, clamp(several, 1, p.gains() - k) * p.span);
            moments.finish(p, r);
            const double rstd = saved.rstd[r], low = saved.low[r];
            const Ahead ahead = beside<T>(p, p.hints.next && r + 1 < to ? n : 0, p.span);
            for (long k = 0; k < p.gains(); k++) {
                const long c = r % p.groups * p.gains() + k, at = k * p.span;
                const double scale = rstd * p.gain.get(c, 1);
                const Constants<A> by{spread<A>(saved.mean[r]), spread<A>((A)scale),
                                      spread<A>((A)(p.shift.get(c, 0) - low * scale))};
                normalize_run<T, NONE, STREAM>(x + at, (T*)p.out + r * n + at, p.span, ahead, nullptr, false, by, A(1));
            }
        }
        end_of_stream();
    });
}

// ----------------------------------------------------------------------------------------------------------- backward

// From the sums of g * gain, and of that times x less the mean's high part, to what the gradient of x is made of.
template <class A>
Projection<A> projection_of(const RowProblem& p, long r, double sum, double along) {
    const Saved<A> saved(p.saved, p.rows());
    const double n = double(p.size()), rstd = saved.rstd[r], low = saved.low[r];
    const double slant = -rstd * rstd * rstd * (along - low * sum) / n;
    return {spread<A>((A)slant), spread<A>((A)(p.centred ? -rstd * sum / n - slant * low : 0))};
}

template <class T, bool GAIN, bool OUT, bool SUMS, bool STREAM>
void backward_of_columns(const RowProblem& p) {
    using A = wide<T>;
    const long n = p.size(), all = p.groups * n, rows = p.rows();
    const long bytes = 2 * long(sizeof(T)), fewest = rows < FEW_BLOCKS ? rows : FEW_BLOCKS;
    const long blocks = bytes * rows * n < SERIAL_BYTES ? 1 : clamp(rows / (ROWS * p.groups), fewest, BLOCKS);
    const long sums = SUMS ? 2 * all : 0;
    Scratch scratch(all * sizeof(A) + blocks * sums * sizeof(double) + 128);
    A* gain = GAIN ? scratch.take<A>(all) : nullptr;
    double* totals = scratch.take<double>(blocks * sums);
    if (SUMS) memset(totals, 0, blocks * sums * sizeof(double));
    for (long k = 0; GAIN && k < all; k += n) dealt<T>(p.gain, k, n, 1, gain + k);
    parallel(p, threads_of(p, bytes), blocks, [&](long block) {
        Scratch own(sums * sizeof(A) + 128);
        A *g_gain = own.take<A>(sums / 2), *g_shift = own.take<A>(sums / 2);
        if (SUMS) memset(g_gain, 0, all * sizeof(A)), memset(g_shift, 0, all * sizeof(A));
        auto put = [&] {
            for (long k = 0; SUMS && k < all; k += n) {
                flush<T>(g_gain + k, totals + block * sums + k, n);
                flush<T>(g_shift + k, totals + block * sums + all + k, n);
            }
        };
        long held = 0;
        for (long r = rows * block / blocks; r < rows * (block + 1) / blocks; r++) {
            const T *x = (const T*)p.x + r * n, *g = (const T*)p.g + r * n;
            const long k = r % p.groups * n;
            const Constants<A> by = constants_of_row<A>(p, r);
            double sum = 0, along = 0;
            for (long at = 0; OUT && at < n; at += FLUSH) {
                const long m = n - at < FLUSH ? n - at : FLUSH;
                vec<A> s{}, q{};
                gradient_sums_of_columns<T, GAIN>(x + at, g + at, m, gain + (GAIN ? k + at : 0), by.mean[0], s, q);
                sum += total(s);
                along += total(q);
            }
            gradient_of_columns<T, GAIN, OUT, SUMS, STREAM>(x, g, (T*)p.out + (OUT ? r * n : 0), n, gain + (GAIN ? k : 0),
                                                            by, projection_of<A>(p, r, sum, along),
                                                            g_gain + (SUMS ? k : 0), g_shift + (SUMS ? k : 0), p.hints.ahead);
            if (++held == ROWS * p.groups) put(), held = 0;
        }
        put();
        end_of_stream();
    });
    for (long i = 0; SUMS && i < all; i++) {
        double onto_gain = 0, onto_shift = 0;
        for (long block = 0; block < blocks; block++) {
            onto_gain += totals[block * sums + i];
            onto_shift += totals[block * sums + all + i];
        }
        p.g_gain.set(i, onto_gain);
        p.g_shift.set(i, onto_shift);
    }
}

// The sums of a span: of the cotangents, and of these times x less the mean's high part.
template <class T>
void sums_of_span(const RowProblem& p, long at, const Constants<wide<T>>& by, double& part, double& along) {
    part = along = 0;
    for (long end = at + p.span; at < end; at += FLUSH) {
        const long m = end - at < FLUSH ? end - at : FLUSH;
        vec<wide<T>> s{}, q{};
        gradient_sums_of_run<T, NONE, false>((const T*)p.x + at, (const T*)p.g + at, m, m, by, wide<T>(1), s, q);
        part += total(s);
        along += total(q);
    }
}

template <class T, bool STREAM>
void backward_of_spans(const RowProblem& p) {
    using A = wide<T>;
    const long n = p.size(), gains = p.gains(), count = p.rows() * gains;
    Scratch scratch(2 * (count * sizeof(double) + 64));
    double *onto_shift = scratch.take<double>(count), *onto_gain = scratch.take<double>(count);
    over_items(p, 2 * sizeof(T), [&](long from, long to) {
        const Saved<A> saved(p.saved, p.rows());
        for (long r = from; r < to; r++) {
            Constants<A> by = constants_of_row<A>(p, r);
            double sum = 0, along = 0;
            for (long k = 0; k < gains; k++) {
                const double gain = p.gain.get(r % p.groups * gains + k, 1);
                double part, part_along;
                sums_of_span<T>(p, r * n + k * p.span, by, part, part_along);
                sum += gain * part;
                along += gain * part_along;
                onto_shift[r * gains + k] = part;
                onto_gain[r * gains + k] = (part_along - saved.low[r] * part) * saved.rstd[r];
            }
            const Projection<A> j = projection_of<A>(p, r, sum, along);
            const Ahead ahead = beside<T>(p, p.hints.next && r + 1 < to ? n : 0, p.span);
            for (long k = 0; k < gains && p.out; k++) {
                const long at = r * n + k * p.span;
                by.scale = spread<A>((A)(saved.rstd[r] * p.gain.get(r % p.groups * gains + k, 1)));
                gradient_of_run<T, NONE, false, STREAM>((const T*)p.x + at, (const T*)p.g + at, (T*)p.out + at, p.span,
                                                        ahead, nullptr, false, by, j, A(1));
            }
        }
        end_of_stream();
    });
    for (long c = 0; c < p.groups * gains; c++) {
        double gain = 0, shift = 0;
        for (long at = c; at < count; at += p.groups * gains) {
            gain += onto_gain[at];
            shift += onto_shift[at];
        }
        p.g_gain.set(c, gain);
        p.g_shift.set(c, shift);
    }
}

template <class T, bool GAIN, bool STREAM>
void backward_of_columns(const RowProblem& p) {
    const bool sums = p.g_gain.data || p.g_shift.data;
    if (p.out && sums) return backward_of_columns<T, GAIN, true, true, STREAM>(p);
    if (p.out) return backward_of_columns<T, GAIN, true, false, STREAM>(p);
    if (sums) backward_of_columns<T, GAIN, false, true, false>(p);
}

template <class T, bool STREAM>
void forward_of_type(const RowProblem& p) {
    if (p.span > 1) return forward_of_spans<T, STREAM>(p);
    if (p.gain.data && p.shift.data) return forward_of_columns<T, true, true, STREAM>(p);
    if (p.gain.data) return forward_of_columns<T, true, false, STREAM>(p);
    if (p.shift.data) return forward_of_columns<T, false, true, STREAM>(p);
    forward_of_columns<T, false, false, STREAM>(p);
}

template <class T, bool STREAM>
void backward_of_type(const RowProblem& p) {
    if (p.span > 1) return backward_of_spans<T, STREAM>(p);
    p.gain.data ? backward_of_columns<T, true, STREAM>(p) : backward_of_columns<T, false, STREAM>(p);
}

template <class T>
bool streamed(const RowProblem& p) {
    const long size = sizeof(T);
    if (p.span == 1 && ((uintptr_t)p.out % 64 || size * p.size() % 64)) return false;
    return streams(p, size * p.rows() * p.size());
}

template <class T>
void forward_of_type(const RowProblem& p) {
    if constexpr (CAN_STREAM<T>) {
        if (streamed<T>(p)) return forward_of_type<T, true>(p);
    }
    forward_of_type<T, false>(p);
}

template <class T>
void backward_of_type(const RowProblem& p) {
    if constexpr (CAN_STREAM<T>) {
        if (streamed<T>(p)) return backward_of_type<T, true>(p);
    }
    backward_of_type<T, false>(p);
}

}  // namespace

void run_rows_forward(const RowProblem& p, int type) {
    if (type == FLOAT) return forward_of_type<float>(p);
    if (type == BFLOAT16) return forward_of_type<bf16>(p);
    forward_of_type<double>(p);
}

void run_rows_backward(const RowProblem& p, int type) {
    if (type == FLOAT) return backward_of_type<float>(p);
    if (type == BFLOAT16) return backward_of_type<bf16>(p);
    backward_of_type<double>(p);
}
