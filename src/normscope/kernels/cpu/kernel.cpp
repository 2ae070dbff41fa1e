// Forward and backward over a whole tensor: which stretches go to which thread, and what stays in its cache.
//
// Runs (channels apart in memory): a work item is a block of channels, small enough that the second pass finds it in
// the cache; where there are too few channels for the threads, the pieces of the channels are the items, in two rounds.
// Columns (channels side by side, and maps too small to be runs): an item is a block of columns that fits the cache
// with all its rows; where none does, groups of rows are, in two rounds.
// Sums are taken by the same pieces in the same order in every case: no bit depends on the number of threads.
#include "kernel.h"

#include "channels.h"

namespace {

// ------------------------------------------------------------------------------------------------ runs of channels

template <class A>
struct PartOfSums {
    double first, second;
};

// Both passes' sums have one form: `step(channel, sample, offset, length, sums...)` adds a stretch to two vectors.
template <class A, class Step>
INLINE void sums_of_piece(const Runs& r, long piece, long c0, long c1, Step&& step, double* first, double* second) {
    constexpr long MOST = 64;
    vec<A> a[MOST], b[MOST];
    for (long at = c0; at < c1; at += MOST) {
        const long end = at + MOST < c1 ? at + MOST : c1;
        for (long c = at; c < end; c++) a[c - at] = b[c - at] = vec<A>{};
        if (r.pieces_of_run > 1) {
            const long s = piece / r.pieces_of_run, from = (piece % r.pieces_of_run) * FLUSH;
            const long n = from + FLUSH < r.positions ? FLUSH : r.positions - from;
            for (long c = at; c < end; c++) step(c, r.at(s, c) + from, n, 0, a[c - at], b[c - at]);
        } else {
            const long s0 = piece * r.per_piece, s1 = s0 + r.per_piece < r.samples ? s0 + r.per_piece : r.samples;
            for (long s = s0; s < s1; s++)
                for (long c = at; c < end; c++)
                    step(c, r.at(s, c), r.positions, c + 1 < end ? r.positions : r.at(s + 1, at) - r.at(s, c), a[c - at],
                         b[c - at]);
        }
        for (long c = at; c < end; c++) {
            first[c - c0] += total(a[c - at]);
            second[c - c0] += total(b[c - at]);
        }
    }
}

// `step` sums, `finish(c, first, second)` ends a channel's sums, `write(c, at, n)` is the second pass.
template <class T, class Step, class Finish, class Write>
void over_runs(const Problem& p, long bytes, Step&& step, Finish&& finish, Write&& write) {
    using A = wide<T>;
    const Runs r(p);
    const long all = bytes * r.samples * r.channels * r.positions;
    const int threads = all < SERIAL_BYTES ? 1 : p.threads;
    if (threads == 1 || r.channels >= 4 * threads) {
        // Two blocks of the cache's eighth fit: while one is written, the next is fetched, so that its first pass finds it
        // there. A larger channel goes by itself, and its second pass backward: it begins with what the first has left in
        // the cache. One of many times the cache is read from memory twice whatever the order; then long stretches are best.
        const long channel = bytes * r.samples * r.positions, run = bytes * r.positions;
        const bool ahead = channel <= half_of_cache() / 2;
        const long share = threads == 1 ? r.channels : r.channels / (4 * threads);
        const long want = ahead                            ? clamp(half_of_cache() / 8 / channel, 1, 16384 / run + 1)
                          : channel <= 4 * half_of_cache() ? 1
                                                           : 32768 / run;
        const long block = clamp(want, 1, share < 64 ? share : 64);
        parallel(p, threads, ceil_div(r.channels, share), [&](long item) {
            const long c0 = item * share, c1 = c0 + share < r.channels ? c0 + share : r.channels;
            for (long at = c0; at < c1; at += block) {
                const long end = at + block < c1 ? at + block : c1;
                const long next = ahead && end < c1 ? block * r.positions : 0;
                double first[64] = {}, second[64] = {};
                for (long k = 0; k < r.pieces; k++) sums_of_piece<A>(r, k, at, end, step, first, second);
                for (long c = at; c < end; c++) finish(c, first[c - at], second[c - at]);
                for (long k = 0; k < r.samples; k++) {
                    const long s = ahead ? k : r.samples - 1 - k, then = ahead ? s + 1 : s - 1;
                    for (long c = at; c < end; c++)
                        write(c, r.at(s, c), r.positions,
                              Ahead{next, c + 1 < end ? r.positions : r.at(then, at) - r.at(s, c)});
                }
            }
            end_of_stream();
        });
        return;
    }
    Scratch scratch(2 * sizeof(double) * r.channels * r.pieces + 256);
    double* first = scratch.take<double>(r.channels * r.pieces);
    double* second = scratch.take<double>(r.channels * r.pieces);
    parallel(p, threads, r.channels * r.pieces, [&](long item) {
        first[item] = second[item] = 0;
        const long c = item / r.pieces;
        sums_of_piece<A>(r, item % r.pieces, c, c + 1, step, first + item, second + item);
    });
    for (long c = 0; c < r.channels; c++) {
        double a = 0, b = 0;
        for (long k = 0; k < r.pieces; k++) {
            a += first[c * r.pieces + k];
            b += second[c * r.pieces + k];
        }
        finish(c, a, b);
    }
    parallel(p, threads, r.samples * r.channels, [&](long item) {
        write(item % r.channels, item * r.positions, r.positions, Ahead{0, r.positions});
        end_of_stream();
    });
}

// --------------------------------------------------------------------------------------------------------- columns

// Rows of `width` values, `per` of them side by side to a channel.
struct Grid {
    long rows, width, per;
    explicit Grid(const Problem& p)
        : rows(p.last ? p.samples * p.positions : p.samples),
          width(p.last ? p.channels : p.channels * p.positions),
          per(p.last ? 1 : p.positions) {}
};

// `sum(row, rows, from, to, first, second)` adds to two sums a column, `finish(c, first, second)` ends a channel,
// `expand(c)` lays its numbers out over its columns, `write(row, rows, from, to)` is the second pass.
template <class T, class Begin, class Sum, class Finish, class Expand, class Write>
void over_columns(const Problem& p, long bytes, Begin&& begin, Sum&& sum, Finish&& finish, Expand&& expand, Write&& write) {
    constexpr long L = lanes<wide<T>>;
    const Grid g(p);
    const long all = bytes * g.rows * g.width, groups = ceil_div(g.rows, GROUP);
    const int threads = all < SERIAL_BYTES ? 1 : p.threads;
    // A block is whole channels and, if that can be, whole tiles.
    long unit = g.per;
    while (unit % (TILE * L) && unit < 4 * TILE * L && unit < g.width) unit += g.per;
    const long fits = half_of_cache() / (bytes * g.rows * unit);
    const long blocks_of_unit = ceil_div(g.width, unit);
    Scratch scratch(2 * sizeof(double) * g.width * (1 + groups) + 256);
    double* first = scratch.take<double>(g.width * (1 + groups));
    double* second = scratch.take<double>(g.width * (1 + groups));

    auto group = [&](long k, long from, long to) {  // sums of one group of rows, which go to the columns' own
        double *a = first + g.width * (1 + k), *b = second + g.width * (1 + k);
        for (long i = from; i < to; i++) a[i] = b[i] = 0;
        const long end = (k + 1) * GROUP < g.rows ? (k + 1) * GROUP : g.rows;
        for (long row = k * GROUP; row < end; row += ROWS) sum(row, row + ROWS < end ? ROWS : end - row, from, to, a, b);
    };
    auto merge = [&](long from, long to) {
        for (long i = from; i < to; i++) first[i] = second[i] = 0;
        for (long k = 0; k < groups; k++) {
            const double *a = first + g.width * (1 + k), *b = second + g.width * (1 + k);
            for (long i = from; i < to; i++) {
                first[i] += a[i];
                second[i] += b[i];
            }
        }
        for (long c = from / g.per; c < to / g.per; c++) {
            double a = first[c * g.per], b = second[c * g.per];
            for (long i = 1; i < g.per; i++) {
                a += first[c * g.per + i];
                b += second[c * g.per + i];
            }
            finish(c, a, b);
            expand(c);
        }
    };

    // Columns cut out of long rows are read in bits: many rows go better whole, even twice.
    const bool whole_columns = fits >= 1 && (!p.last || g.rows <= 8 * ROWS);
    if (whole_columns && (threads == 1 || blocks_of_unit >= 2 * threads)) {
        const long width = unit * clamp(fits, 1, threads == 1 ? blocks_of_unit : blocks_of_unit / (2 * threads));
        parallel(p, threads, ceil_div(g.width, width), [&](long item) {
            const long from = item * width, to = from + width < g.width ? from + width : g.width;
            begin(from, to);
            for (long k = 0; k < groups; k++) group(k, from, to);
            merge(from, to);
            // Backwards: what was read last is still near.
            for (long row = (g.rows - 1) / ROWS * ROWS; row >= 0; row -= ROWS)
                write(row, row + ROWS < g.rows ? ROWS : g.rows - row, from, to);
            end_of_stream();
        });
        return;
    }
    // Rows in groups; too few groups for the threads, and the columns are cut too.
    const long cuts = groups >= 2 * threads ? 1 : clamp(ceil_div(2 * threads, groups), 1, blocks_of_unit);
    const long width = ceil_div(blocks_of_unit, cuts) * unit;
    auto edge = [&](long cut) { return cut * width < g.width ? cut * width : g.width; };
    begin(0, g.width);
    parallel(p, threads, groups * cuts, [&](long i) { group(i / cuts, edge(i % cuts), edge(i % cuts + 1)); });
    parallel(p, threads, cuts, [&](long i) { merge(edge(i), edge(i + 1)); });
    // Backward, and each thread over the rows that it has read: what it read last is still in its cache.
    const auto write_piece = [&](long i) {
        const long row = i / cuts * ROWS;
        write(row, row + ROWS < g.rows ? ROWS : g.rows - row, edge(i % cuts), edge(i % cuts + 1));
        end_of_stream();
    };
    parallel(p, threads, ceil_div(g.rows, ROWS) * cuts, write_piece, true);
}

bool as_columns(const Problem& p) { return p.last || p.positions < SMALL_MAP; }

// --------------------------------------------------------------------------------------------------------- forward

template <class T, int ACT, bool STREAM>
void forward(const Problem& p) {
    using A = wide<T>;
    const T* x = (const T*)p.x;
    T* y = (T*)p.out;
    const A slope = (A)p.slope;
    auto constants = [&](long c) {
        A mean, scale, offset;
        constants_of<A, false>(p, c, mean, scale, offset);
        return Constants<A>{spread<A>(mean), spread<A>(scale), spread<A>(offset)};
    };
    if (!as_columns(p)) {
        Scratch scratch(sizeof(A) * p.channels + 64);
        A* shift = scratch.take<A>(p.channels);
        for (long c = 0; c < p.channels; c++) shift[c] = shift_of(x + c * p.positions, p.positions < 16 ? p.positions : 16, 1);
        over_runs<T>(
            p, sizeof(T),
            [&](long c, long at, long n, long jump, vec<A>& s, vec<A>& q) { moments_of_run<T>(x + at, n, jump, shift[c], s, q); },
            [&](long c, double s, double q) { finish_forward<T>(p, c, shift[c], s, q); },
            [&](long c, long at, long n, Ahead next) { normalize_run<T, ACT, STREAM>(x + at, y + at, n, next, constants(c), slope); });
        return;
    }
    const Grid g(p);
    Scratch scratch(4 * (sizeof(A) * g.width + 64));
    A* shift = scratch.take<A>(g.width);
    Columns<A> k{scratch.take<A>(g.width), scratch.take<A>(g.width), scratch.take<A>(g.width), nullptr, nullptr};
    k.deep = long(sizeof(T)) * g.rows * g.width > half_of_cache() ? DEEP : 0;
    over_columns<T>(
        p, sizeof(T),
        [&](long from, long to) {
            for (long c = from / g.per; c < to / g.per; c++) {
                const A s = g.per > 1 ? shift_of(x + c * g.per, g.per < 16 ? g.per : 16, 1)
                                      : shift_of(x + c, g.rows < 16 ? g.rows : 16, g.width);
                for (long i = c * g.per; i < (c + 1) * g.per; i++) shift[i] = s;
            }
        },
        [&](long row, long rows, long from, long to, double* a, double* b) {
            const T* at = x + row * g.width;
            over_tiles<A>(
                from, to,
                [&](long i) { moments_of_tile<T, TILE, false>(at + i, g.width, rows, 0, shift + i, a + i, b + i); },
                [&](long i) { moments_of_tile<T, 1, false>(at + i, g.width, rows, 0, shift + i, a + i, b + i); },
                [&](long i, long n) { moments_of_tile<T, 1, true>(at + i, g.width, rows, n, shift + i, a + i, b + i); });
        },
        [&](long c, double s, double q) { finish_forward<T>(p, c, shift[c * g.per], s, q); },
        [&](long c) {
            A mean, scale, offset;
            constants_of<A, false>(p, c, mean, scale, offset);
            for (long i = c * g.per; i < (c + 1) * g.per; i++) {
                k.mean[i] = mean;
                k.scale[i] = scale;
                k.offset[i] = offset;
            }
        },
        [&](long row, long rows, long from, long to) {
            const T* at = x + row * g.width;
            T* into = y + row * g.width;
            over_tiles<A>(
                from, to,
                [&](long i) { normalize_tile<T, ACT, STREAM, TILE, false>(at + i, into + i, g.width, rows, 0, k, i, slope); },
                [&](long i) { normalize_tile<T, ACT, STREAM, 1, false>(at + i, into + i, g.width, rows, 0, k, i, slope); },
                [&](long i, long n) { normalize_tile<T, ACT, STREAM, 1, true>(at + i, into + i, g.width, rows, n, k, i, slope); });
        });
}

// -------------------------------------------------------------------------------------------------------- backward

template <class T, int ACT, bool OUT, bool STREAM>
void backward(const Problem& p) {
    using A = wide<T>;
    const T *x = (const T*)p.x, *d = (const T*)p.g;
    T* out = (T*)p.out;
    const A slope = (A)p.slope;
    if (!as_columns(p)) {
        Scratch scratch(2 * (sizeof(A) * p.channels + 64));
        A *slant = scratch.take<A>(p.channels), *level = scratch.take<A>(p.channels);
        auto constants = [&](long c) {
            A mean, scale, offset;
            constants_of<A, OUT>(p, c, mean, scale, offset);
            return Constants<A>{spread<A>(mean), spread<A>(scale), spread<A>(offset)};
        };
        over_runs<T>(
            p, 2 * sizeof(T),
            [&](long c, long at, long n, long jump, vec<A>& s, vec<A>& q) {
                gradient_sums_of_run<T, ACT, OUT>(x + at, d + at, n, jump, constants(c), slope, s, q);
            },
            [&](long c, double s, double q) { finish_backward<A, OUT>(p, c, s, q, slant[c], level[c]); },
            [&](long c, long at, long n, Ahead next) {
                if (out)
                    gradient_of_run<T, ACT, OUT, STREAM>(x + at, d + at, out + at, n, next, constants(c),
                                                 Projection<A>{spread<A>(slant[c]), spread<A>(level[c])}, slope);
            });
        return;
    }
    const Grid g(p);
    Scratch scratch(5 * (sizeof(A) * g.width + 64));
    Columns<A> k{scratch.take<A>(g.width), scratch.take<A>(g.width), scratch.take<A>(g.width), scratch.take<A>(g.width),
                 scratch.take<A>(g.width)};
    k.deep = 2 * long(sizeof(T)) * g.rows * g.width > half_of_cache() ? DEEP : 0;
    over_columns<T>(
        p, 2 * sizeof(T),
        [&](long from, long to) {
            for (long c = from / g.per; c < to / g.per; c++) {
                A mean, scale, offset;
                constants_of<A, OUT>(p, c, mean, scale, offset);
                for (long i = c * g.per; i < (c + 1) * g.per; i++) {
                    k.mean[i] = mean;
                    k.scale[i] = scale;
                    k.offset[i] = offset;
                }
            }
        },
        [&](long row, long rows, long from, long to, double* a, double* b) {
            const long at = row * g.width;
            auto tile = [&]<int U, bool TAIL>(long i, long n) {
                gradient_sums_of_tile<T, ACT, OUT, U, TAIL>(x + at + i, d + at + i, g.width, rows, n, k, i, slope, a + i, b + i);
            };
            over_tiles<A>(
                from, to, [&](long i) { tile.template operator()<TILE, false>(i, 0); },
                [&](long i) { tile.template operator()<1, false>(i, 0); },
                [&](long i, long n) { tile.template operator()<1, true>(i, n); });
        },
        [&](long c, double s, double q) {
            A slant, level;
            finish_backward<A, OUT>(p, c, s, q, slant, level);
            for (long i = c * g.per; i < (c + 1) * g.per; i++) {
                k.slant[i] = slant;
                k.level[i] = level;
            }
        },
        [&](long) {},
        [&](long row, long rows, long from, long to) {
            if (!out) return;
            const long at = row * g.width;
            auto tile = [&]<int U, bool TAIL>(long i, long n) {
                gradient_of_tile<T, ACT, OUT, STREAM, U, TAIL>(x + at + i, d + at + i, out + at + i, g.width, rows, n, k, i, slope);
            };
            over_tiles<A>(
                from, to, [&](long i) { tile.template operator()<TILE, false>(i, 0); },
                [&](long i) { tile.template operator()<1, false>(i, 0); },
                [&](long i, long n) { tile.template operator()<1, true>(i, n); });
        });
}

// Not for double, which nobody trains in, and not where it would be a plain store.
template <class T>
constexpr bool CAN_STREAM = NORMSCOPE_BYTES >= 32 && sizeof(T) < 8;

template <class T>
bool streamed(const Problem& p) {
    const long size = sizeof(T), all = size * p.samples * p.channels * p.positions;
    return streams(p, size * (as_columns(p) ? Grid(p).width : p.positions), all);
}

template <class T, int ACT>
void forward_of(const Problem& p) {
    if constexpr (CAN_STREAM<T>) {
        if (streamed<T>(p)) return forward<T, ACT, true>(p);
    }
    forward<T, ACT, false>(p);
}

template <class T, int ACT, bool OUT>
void backward_of(const Problem& p) {
    if constexpr (CAN_STREAM<T>) {
        if (streamed<T>(p)) return backward<T, ACT, OUT, true>(p);
    }
    backward<T, ACT, OUT, false>(p);
}

template <class T>
void forward_of(const Problem& p, int act) {
    if (act == RELU) return forward_of<T, RELU>(p);
    if (act == LEAKY_RELU) return forward_of<T, LEAKY_RELU>(p);
    forward_of<T, NONE>(p);
}

template <class T>
void backward_of(const Problem& p, int act, bool from_output) {
    if (act == RELU) return backward_of<T, RELU, false>(p);
    if (act == LEAKY_RELU) return from_output ? backward_of<T, LEAKY_RELU, true>(p) : backward_of<T, LEAKY_RELU, false>(p);
    from_output ? backward_of<T, NONE, true>(p) : backward_of<T, NONE, false>(p);
}

}  // namespace

void run_forward(const Problem& p, int type, int act) {
    if (type == FLOAT) return forward_of<float>(p, act);
    if (type == BFLOAT16) return forward_of<bf16>(p, act);
    forward_of<double>(p, act);
}

void run_backward(const Problem& p, int type, int act, bool from_output) {
    if (type == FLOAT) return backward_of<float>(p, act, from_output);
    if (type == BFLOAT16) return backward_of<bf16>(p, act, from_output);
    backward_of<double>(p, act, from_output);
}
