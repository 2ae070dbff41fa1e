// Forward and backward over a whole tensor: which stretches go to which thread, and what stays in its cache.
//
// Runs (channels apart in memory): a work item is a block of channels, small enough that the second pass finds it in
// a cache; where there are too few channels for the threads, the pieces of the channels are the items, in two rounds.
// Columns (channels side by side, and maps too small to be runs): an item is a block of columns that fits the cache
// with all its rows; where none does, groups of rows are, in two rounds.
// Sums are taken by the same pieces in the same order in every case: no bit depends on the number of threads, nor on any
// of the hints.
#include "kernel.h"

#include "channels.h"

namespace {

// ------------------------------------------------------------------------------------------------ runs of channels

template <class A>
struct PartOfSums {
    double first, second;
};

constexpr long MOST = 64;  // channels of a block

// Both passes' sums have one form: `step(channel, at, length, jump, sums...)` adds a stretch to two vectors; `jump` leads to
// the stretch that follows.
template <class A, class Step>
INLINE void sums_of_piece(const Runs& r, long piece, long c, Step&& step, vdouble& first, vdouble& second) {
    vec<A> a{}, b{};
    if (r.pieces_of_run > 1) {
        const long s = piece / r.pieces_of_run, from = (piece % r.pieces_of_run) * FLUSH;
        const long n = from + FLUSH < r.positions ? FLUSH : r.positions - from;
        step(c, r.at(s, c) + from, n, n, a, b);
    } else {
        const long s0 = piece * r.per_piece, s1 = s0 + r.per_piece < r.samples ? s0 + r.per_piece : r.samples;
        for (long s = s0; s < s1; s++) step(c, r.at(s, c), r.positions, r.channels * r.positions, a, b);
    }
    first += in_double(a);
    second += in_double(b);
}

// The same sums of all channels of a block, in the order of memory.
template <class A, class Step>
INLINE void sums_of_block(const Runs& r, long c0, long c1, Step&& step, vdouble* first, vdouble* second) {
    if (r.pieces_of_run > 1) {
        for (long s = 0; s < r.samples; s++)
            for (long c = c0; c < c1; c++)
                for (long k = s * r.pieces_of_run; k < (s + 1) * r.pieces_of_run; k++)
                    sums_of_piece<A>(r, k, c, step, first[c - c0], second[c - c0]);
        return;
    }
    vec<A> a[MOST], b[MOST];
    for (long k = 0; k < r.pieces; k++) {
        for (long c = c0; c < c1; c++) a[c - c0] = b[c - c0] = vec<A>{};
        const long s0 = k * r.per_piece, s1 = s0 + r.per_piece < r.samples ? s0 + r.per_piece : r.samples;
        for (long s = s0; s < s1; s++)
            for (long c = c0; c < c1; c++)
                step(c, r.at(s, c), r.positions, c + 1 < c1 ? r.positions : r.at(s + 1, c0) - r.at(s, c), a[c - c0],
                     b[c - c0]);
        for (long c = c0; c < c1; c++) {
            first[c - c0] += in_double(a[c - c0]);
            second[c - c0] += in_double(b[c - c0]);
        }
    }
}

// How many channels are taken together. As many as both passes find in a core's own cache. More where their stretches are
// too short for memory to be read fast, and a larger cache stands behind that does not hold all of the input as it is; few
// where no cache holds even two of them.
long block_of(const Problem& p, const Runs& r, long bytes, int threads, long share) {
    const Hints& h = p.hints;
    const long channel = bytes * r.samples * r.positions, run = bytes * r.positions;
    const long behind = h.shared / (4 * threads), room = behind > h.own / 2 ? behind : h.own / 2;
    const long stretched = channel * r.channels > h.shared / 2 ? ceil_div(h.stretch, run) : 0;
    long want = h.own / 4 / channel;
    if (stretched > want) want = clamp(stretched, 1, room / channel > 1 ? room / channel : 1);
    if (channel > 4 * room) want = 32768 / run;
    return clamp(want, 1, share < MOST ? share : MOST);
}

// `step` sums, `finish(c, first, second)` ends a channel's sums, `write(c, at, n, ...)` is the second pass.
template <class T, class Step, class Finish, class Write>
void over_runs(const Problem& p, long bytes, Step&& step, Finish&& finish, Write&& write) {
    using A = wide<T>;
    const Runs r(p);
    const long all = bytes * r.samples * r.channels * r.positions;
    const int threads = all < SERIAL_BYTES ? 1 : p.threads;
    if (threads == 1 || r.channels >= 4 * threads) {
        const long share = threads == 1 ? r.channels : r.channels / (4 * threads);
        const long block = block_of(p, r, bytes, threads, share);
        // A block that is larger than the cache is gone over backward: it begins with what the first pass has left there.
        const bool ahead = bytes * r.samples * r.positions * block <= p.hints.own / 2;
        parallel(p, threads, ceil_div(r.channels, share), [&](long item) {
            const long c0 = item * share, c1 = c0 + share < r.channels ? c0 + share : r.channels;
            for (long at = c0; at < c1; at += block) {
                const long end = at + block < c1 ? at + block : c1;
                Line<T> line;
                const long next = p.hints.next && end < c1 ? block * r.positions : 0;
                vdouble first[MOST] = {}, second[MOST] = {};
                sums_of_block<A>(r, at, end, step, first, second);
                for (long c = at; c < end; c++) finish(c, total(first[c - at]), total(second[c - at]));
                for (long k = 0; k < r.samples; k++) {
                    const long s = ahead ? k : r.samples - 1 - k, then = ahead ? s + 1 : s - 1;
                    for (long c = at; c < end; c++)
                        write(c, r.at(s, c), r.positions,
                              beside<T>(p, next, c + 1 < end ? r.positions : r.at(then, at) - r.at(s, c)), &line, c + 1 < end);
                }
            }
            end_of_stream();
        });
        return;
    }
    Scratch scratch(2 * sizeof(vdouble) * r.channels * r.pieces + 256);
    vdouble* first = scratch.take<vdouble>(r.channels * r.pieces);
    vdouble* second = scratch.take<vdouble>(r.channels * r.pieces);
    parallel(p, threads, r.channels * r.pieces, [&](long item) {
        first[item] = second[item] = vdouble{};
        const long c = item / r.pieces;
        sums_of_piece<A>(r, item % r.pieces, c, step, first[item], second[item]);
    });
    for (long c = 0; c < r.channels; c++) {
        vdouble a{}, b{};
        for (long k = 0; k < r.pieces; k++) {
            a += first[c * r.pieces + k];
            b += second[c * r.pieces + k];
        }
        finish(c, total(a), total(b));
    }
    parallel(p, threads, r.samples * r.channels, [&](long item) {
        write(item % r.channels, item * r.positions, r.positions, beside<T>(p, 0, r.positions), nullptr, false);
        end_of_stream();
    });
}

// --------------------------------------------------------------------------------------------------------- columns

// Rows of `width` values. A channel has several columns: neighbours where its map lies in the row (`per`), or, where
// channels lie side by side, one in each of the `fold` rows that are taken for one, so that it has some length.
template <class T>
struct Grid {
    static constexpr long WIDTH = 256, SMALL = 65536, LINE = 64 / sizeof(T);
    long rows, width, per, fold, last_width, channels;
    explicit Grid(const Problem& p)
        : rows(p.last ? p.samples * p.positions : p.samples),
          width(p.last ? p.channels : p.channels * p.positions),
          per(p.last ? 1 : p.positions),
          fold(1),
          last_width(width),
          channels(p.channels) {
        if (!p.last || rows * width < SMALL || (width >= WIDTH && width % LINE == 0)) return;
        fold = LINE;
        while (fold > 1 && width * (fold / 2) % LINE == 0) fold /= 2;
        const long least = width * fold, wanted = least <= NARROW<T> ? NARROW<T> : WIDTH;
        fold *= least < wanted ? wanted / least : 1;
        last_width = rows % fold ? rows % fold * width : width * fold;
        rows = ceil_div(rows, fold);
        width *= fold;
    }
    long columns() const { return per * fold; }  // of a channel
    long column(long c, long k) const { return fold > 1 ? c + k * channels : c * per + k; }
    // Call `f(row, rows, from, to)` for rows of one width: the last may be shorter.
    template <class F>
    INLINE void even(long row, long count, long from, long to, F&& f) const {
        const bool short_row = row + count == rows && last_width < to;
        if (count > short_row) f(row, count - short_row, from, to);
        if (short_row && from < last_width) f(rows - 1, 1L, from, last_width);
    }
};

constexpr long CHUNK = 2048;  // columns whose sums stand in the nearest cache

template <class T>
Bands bands_of(const Problem& p, long bytes, const Grid<T>& g) {
    if (bytes * g.rows * g.width <= p.hints.own || g.width > CHUNK) return {4, false};
    return {p.hints.pairs ? 2 : 1, p.hints.pairs};
}

// `sum(row, rows, from, to, first, second)` adds to two sums a column, `finish(c, first, second)` ends a channel,
// `expand(c)` lays its numbers out over its columns, `write(row, rows, from, to)` is the second pass.
template <class T, class Begin, class Sum, class Finish, class Expand, class Write>
void over_columns(const Problem& p, long bytes, Begin&& begin, Sum&& sum, Finish&& finish, Expand&& expand, Write&& write) {
    using A = wide<T>;
    const Grid<T> g(p);
    const long all = bytes * g.rows * g.width, groups = ceil_div(g.rows, GROUP);
    const int threads = all < SERIAL_BYTES ? 1 : p.threads;
    // A block is whole channels and whole lines.
    long unit = g.per;
    while (unit % Grid<T>::LINE || unit < 8 * Grid<T>::LINE) unit += g.per;
    if (unit > g.width) unit = g.width;
    const long fits = p.hints.own / 2 / (bytes * g.rows * unit);
    const long blocks_of_unit = ceil_div(g.width, unit);
    Scratch scratch(2 * sizeof(double) * g.width * (1 + groups) + 256);
    double* first = scratch.take<double>(g.width * (1 + groups));
    double* second = scratch.take<double>(g.width * (1 + groups));

    auto group = [&](long k, long from, long to) {  // sums of one group of rows, which go to the columns' own
        double *a = first + g.width * (1 + k), *b = second + g.width * (1 + k);
        alignas(64) A s[CHUNK], q[CHUNK];
        const long end = (k + 1) * GROUP < g.rows ? (k + 1) * GROUP : g.rows;
        for (long at = from; at < to; at += CHUNK) {
            const long until = at + CHUNK < to ? at + CHUNK : to;
            memset(s, 0, (until - at) * sizeof(A)), memset(q, 0, (until - at) * sizeof(A));
            for (long i = at; i < until; i++) a[i] = b[i] = 0;
            for (long row = k * GROUP; row < end; row += ROWS) {
                g.even(row, row + ROWS < end ? ROWS : end - row, at, until, [&](long r, long rows, long, long so_far) {
                    sum(r, rows, at, so_far, s, q);
                    flush_sums<T>(s, a + at, so_far - at);
                    flush_sums<T>(q, b + at, so_far - at);
                });
            }
        }
    };
    auto merge = [&](long c0, long c1) {  // of channels
        for (long f = 0; f < g.fold; f++) {
            const long from = g.column(c0, f * (g.fold > 1)), to = from + (c1 - c0) * g.per;
            for (long i = from; i < to; i++) first[i] = second[i] = 0;
            for (long k = 1; k <= groups; k++) {
                for (long i = from; i < to; i++) {
                    first[i] += first[g.width * k + i];
                    second[i] += second[g.width * k + i];
                }
            }
        }
        for (long c = c0; c < c1; c++) {
            double a = 0, b = 0;
            for (long k = 0; k < g.columns(); k++) {
                a += first[g.column(c, k)];
                b += second[g.column(c, k)];
            }
            finish(c, a, b);
            expand(c);
        }
    };

    // Columns cut out of long rows are read in bits: many rows go better whole, even twice.
    const bool whole_columns = fits >= 1 && g.fold == 1 && (!p.last || g.rows <= 8 * ROWS);
    if (whole_columns && (threads == 1 || blocks_of_unit >= 2 * threads)) {
        const long width = unit * clamp(fits, 1, threads == 1 ? blocks_of_unit : blocks_of_unit / (2 * threads));
        parallel(p, threads, ceil_div(g.width, width), [&](long item) {
            const long from = item * width, to = from + width < g.width ? from + width : g.width;
            begin(from / g.per, to / g.per);
            for (long k = 0; k < groups; k++) group(k, from, to);
            merge(from / g.per, to / g.per);
            // Backwards: what was read last is still near.
            for (long row = (g.rows - 1) / ROWS * ROWS; row >= 0; row -= ROWS)
                write(row, row + ROWS < g.rows ? ROWS : g.rows - row, from, to);
            end_of_stream();
        });
        return;
    }
    // Rows in groups; too few groups for the threads, and the columns are cut too.
    const long cuts = g.fold > 1 || groups >= 2 * threads ? 1 : clamp(ceil_div(2 * threads, groups), 1, blocks_of_unit);
    const long width = ceil_div(blocks_of_unit, cuts) * unit;
    auto edge = [&](long cut) { return g.fold > 1 ? cut * g.width : cut * width < g.width ? cut * width : g.width; };
    begin(0, g.channels);
    parallel(p, threads, groups * cuts, [&](long i) { group(i / cuts, edge(i % cuts), edge(i % cuts + 1)); });
    const long merges = g.channels < 2 * threads ? 1 : 2 * threads;
    parallel(p, threads, merges, [&](long i) { merge(g.channels * i / merges, g.channels * (i + 1) / merges); });
    // Backward, and each thread over the rows that it has read: what it read last is still in its cache.
    const long piece = ROWS * clamp(p.hints.own / (ROWS * bytes * g.width), 1, ceil_div(g.rows, 8 * ROWS * threads));
    const auto write_piece = [&](long i) {
        const long row = i / cuts * piece;
        g.even(row, row + piece < g.rows ? piece : g.rows - row, edge(i % cuts), edge(i % cuts + 1), write);
        end_of_stream();
    };
    parallel(p, threads, ceil_div(g.rows, piece) * cuts, write_piece, true);
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
            [&](long c, long at, long n, Ahead ahead, Line<T>* line, bool goes_on) {
                normalize_run<T, ACT, STREAM>(x + at, y + at, n, ahead, line, goes_on, constants(c), slope);
            });
        return;
    }
    const Grid<T> g(p);
    Scratch scratch(4 * (sizeof(A) * g.width + 64));
    A* shift = scratch.take<A>(g.width);
    const Bands bands = bands_of(p, sizeof(T), g);
    Columns<A> k{scratch.take<A>(g.width), scratch.take<A>(g.width), scratch.take<A>(g.width), nullptr, nullptr};
    over_columns<T>(
        p, sizeof(T),
        [&](long from, long to) {
            for (long c = from; c < to; c++) {
                const A s = g.per > 1 ? shift_of(x + c * g.per, g.per < 16 ? g.per : 16, 1)
                                      : shift_of(x + c, p.samples * p.positions < 16 ? p.samples * p.positions : 16, p.channels);
                for (long i = 0; i < g.columns(); i++) shift[g.column(c, i)] = s;
            }
        },
        [&](long row, long rows, long from, long to, A* a, A* b) {
            moments_of_rows<T>(x + row * g.width + from, g.width, rows, to - from, bands, shift + from, a, b);
        },
        [&](long c, double s, double q) { finish_forward<T>(p, c, shift[g.column(c, 0)], s, q); },
        [&](long c) {
            A mean, scale, offset;
            constants_of<A, false>(p, c, mean, scale, offset);
            for (long i = 0; i < g.columns(); i++) {
                const long at = g.column(c, i);
                k.mean[at] = mean, k.scale[at] = scale, k.offset[at] = offset;
            }
        },
        [&](long row, long rows, long from, long to) {
            const long at = row * g.width + from;
            const Columns<A> here{k.mean + from, k.scale + from, k.offset + from, nullptr, nullptr};
            normalize_rows<T, ACT, STREAM>(x + at, y + at, g.width, rows, to - from, bands, p.hints.ahead, here, slope);
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
            [&](long c, long at, long n, Ahead ahead, Line<T>* line, bool goes_on) {
                const Projection<A> j{spread<A>(slant[c]), spread<A>(level[c])};
                if (out) gradient_of_run<T, ACT, OUT, STREAM>(x + at, d + at, out + at, n, ahead, line, goes_on, constants(c), j, slope);
            });
        return;
    }
    const Grid<T> g(p);
    Scratch scratch(5 * (sizeof(A) * g.width + 64));
    Columns<A> k{scratch.take<A>(g.width), scratch.take<A>(g.width), scratch.take<A>(g.width), scratch.take<A>(g.width),
                 scratch.take<A>(g.width)};
    const Bands bands = bands_of(p, 2 * sizeof(T), g);
    over_columns<T>(
        p, 2 * sizeof(T),
        [&](long from, long to) {
            for (long c = from; c < to; c++) {
                A mean, scale, offset;
                constants_of<A, OUT>(p, c, mean, scale, offset);
                for (long i = 0; i < g.columns(); i++) {
                    const long at = g.column(c, i);
                    k.mean[at] = mean, k.scale[at] = scale, k.offset[at] = offset;
                }
            }
        },
        [&](long row, long rows, long from, long to, A* a, A* b) {
            const long at = row * g.width + from;
            const Columns<A> here{k.mean + from, k.scale + from, k.offset + from, nullptr, nullptr};
            gradient_sums_of_rows<T, ACT, OUT>(x + at, d + at, g.width, rows, to - from, bands, here, slope, a, b);
        },
        [&](long c, double s, double q) {
            A slant, level;
            finish_backward<A, OUT>(p, c, s, q, slant, level);
            for (long i = 0; i < g.columns(); i++) {
                k.slant[g.column(c, i)] = slant;
                k.level[g.column(c, i)] = level;
            }
        },
        [&](long) {},
        [&](long row, long rows, long from, long to) {
            if (!out) return;
            const long at = row * g.width + from;
            const Columns<A> here{k.mean + from, k.scale + from, k.offset + from, k.slant + from, k.level + from};
            gradient_of_rows<T, ACT, OUT, STREAM>(x + at, d + at, out + at, g.width, rows, to - from, bands, p.hints.ahead, here, slope);
        });
}

template <class T>
bool streamed(const Problem& p) {
    const long size = sizeof(T);
    // Runs begin with what is missing of a line; rows would have to in every row.
    if (as_columns(p) && ((uintptr_t)p.out % 64 || size * Grid<T>(p).width % 64)) return false;
    return streams(p, size * p.samples * p.channels * p.positions);
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
