// Calls of the CPU kernel on arrays that are drawn: what they are of, where they lie, what came out.
#pragma once

#include <sys/mman.h>

#include <bit>
#include <limits>
#include <vector>

#include "kernel.h"

constexpr double EPS = 1e-5, SHARE = 0.1, SLOPE = 0.2;

enum Kind { CENTRED, NEAR, FAR_OFF, FARTHEST, CONSTANT, JUMP, KINDS };
constexpr double MEAN_OF[KINDS] = {0, 3, 1e4, 1e6, 0, 0};  // in deviations
enum Place { AT_THE_END, AT_THE_START, ONE_ON, PLACES };
enum Poison { NOTHING, NOT_A_NUMBER, INFINITE, MINUS_INFINITE, NO_WEIGHT, POISONS };
enum Room { X, Y, G, G_X, SAVED, WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR, G_WEIGHT, G_BIAS, ROOMS };

struct Case {
    long samples, channels, positions;
    bool last;
    int threads = 1, type = FLOAT, act = NONE, kind = CENTRED, place = AT_THE_END, rows = FLOAT;
    bool in_place = false;   // the output over the input, the gradient over the cotangent
    bool bare = false;       // without weight, bias and running statistics
    bool sums_only = false;  // the gradient of x is not wanted
    Hints hints = {};

    long n() const { return samples * positions; }
    long values() const { return n() * channels; }
    long at(long c, long i) const {
        return last ? i * channels + c : (i / positions * channels + c) * positions + i % positions;
    }
};

// An array between two pages that nobody may touch: what reads or writes past its end stops the program, on an emulator
// too, where no sanitizer looks.
class Fenced {
    static constexpr long PAGE = 1 << 16, SIZE = 1 << 20;
    char* base;

   public:
    Fenced() : base((char*)mmap(nullptr, SIZE + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + PAGE) {
        if (mprotect(base, SIZE, PROT_READ | PROT_WRITE)) std::abort();
    }
    template <class T>
    T* take(long count, int place) {
        const long bytes = count * long(sizeof(T));
        if (bytes > SIZE - 8) std::abort();
        char* at = place == AT_THE_END ? base + SIZE - bytes : place == ONE_ON ? base + sizeof(T) : base;
        return (T*)memset(at, 0xff, bytes);  // NaN in every type: what is never written fails
    }
};
inline Fenced rooms[ROOMS];

inline uint64_t next(uint64_t& state) {
    return (state = state * 6364136223846793005u + 1442695040888963407u) >> 40;
}
inline double draw(uint64_t& state) {  // a mean of 0, a deviation of 1
    double sum = -2;
    for (int i = 0; i < 4; i++) sum += double(next(state)) / (1 << 24);
    return sum * std::sqrt(3.0);
}

// Not by the kernel's own conversions.
inline double number(double d) { return d; }
inline double number(bf16 h) { return std::bit_cast<float>(uint32_t(h.bits) << 16); }
template <class T>
T stored(double value) {
    if constexpr (sizeof(T) == 2) return T{uint16_t(std::bit_cast<uint32_t>(float(value)) >> 16)};
    else return T(value);
}

template <class T>
T drawn_value(const Case& k, long i, uint64_t& state) {
    const double value = 1.7 * (draw(state) + MEAN_OF[k.kind]);
    if (k.kind == CONSTANT) return stored<T>(3.7);
    // The first values, by which the kernel judges the mean, are far from all others.
    if (k.kind == JUMP) return stored<T>(i < (k.last ? 16 : k.positions) ? 7 : 1e-3 * value);
    return stored<T>(value);
}

inline double drawn_of_row(int row, long c, uint64_t& state) {
    const double value = draw(state);
    // Weights of both signs but away from zero: the in-place mode divides by them.
    if (row == WEIGHT) return (c % 3 ? 1 : -1) * (0.4 + std::fabs(value));
    return row == RUNNING_VAR ? 1 + value * value : value;
}

template <class T>
struct Results {
    std::vector<T> x, g, y, g_x;                      // x and g as they were given
    std::vector<double> before[ROOMS], after[ROOMS];  // rows of one value a channel
};

// One forward and backward, all drawn from `seed`; `poison` goes into a channel, there to value `i_poisoned`.
template <class T>
Results<T> run(const Case& k, uint64_t seed, int poison = NOTHING, long c_poisoned = 0, long i_poisoned = 0) {
    Results<T> r;
    Problem p;
    T *x = rooms[X].take<T>(k.values(), k.place), *y = k.in_place ? x : rooms[Y].take<T>(k.values(), k.place);
    T *g = rooms[G].take<T>(k.values(), k.place), *g_x = k.in_place ? g : rooms[G_X].take<T>(k.values(), k.place);
    p.saved = rooms[SAVED].take<wide<T>>(6 * k.channels, k.place);
    for (long i = 0; i < k.values(); i++) g[i] = stored<T>(draw(seed));
    for (long c = 0; c < k.channels; c++)
        for (long i = 0; i < k.n(); i++) x[k.at(c, i)] = drawn_value<T>(k, i, seed);
    const double poisons[POISONS] = {0, NAN, INFINITY, -INFINITY, 0};
    if (poison != NOTHING && poison != NO_WEIGHT) x[k.at(c_poisoned, i_poisoned)] = stored<T>(poisons[poison]);
    PerChannel rows[ROOMS];
    const long size = k.rows == DOUBLE ? 8 : k.rows == FLOAT ? 4 : 2;
    const int place_of_rows = k.place == AT_THE_END ? AT_THE_END : AT_THE_START;
    for (int row = WEIGHT; row < ROOMS; row++) {
        rows[row].type = k.rows;
        if (!k.bare) rows[row].data = rooms[row].take<char>(size * k.channels, place_of_rows);
        for (long c = 0; c < k.channels && row <= RUNNING_VAR; c++) rows[row].set(c, drawn_of_row(row, c, seed));
        // A NaN with all bits set: rounded like a number it would become one.
        if (row == WEIGHT && poison == NO_WEIGHT) memset((char*)rows[row].data + size * c_poisoned, 0xff, size);
        for (long c = 0; c < k.channels; c++) r.before[row].push_back(rows[row].get(c, row == WEIGHT));
    }
    r.x.assign(x, x + k.values());
    r.g.assign(g, g + k.values());

    p.hints = k.hints;
    p.samples = k.samples, p.channels = k.channels, p.positions = k.positions, p.last = k.last, p.threads = k.threads;
    p.eps = EPS, p.share = SHARE, p.slope = SLOPE;
    p.weight = rows[WEIGHT], p.running_mean = rows[RUNNING_MEAN], p.g_weight = rows[G_WEIGHT];
    p.bias = rows[BIAS], p.running_var = rows[RUNNING_VAR], p.g_bias = rows[G_BIAS];
    p.x = x, p.out = y;
    run_forward(p, k.type, k.act);
    r.y.assign(y, y + k.values());
    p.x = k.in_place ? y : x, p.g = g, p.out = k.sums_only ? nullptr : g_x;
    run_backward(p, k.type, k.act, k.in_place);
    r.g_x.assign(g_x, g_x + k.values());
    for (int row = WEIGHT; row < ROOMS; row++)
        for (long c = 0; c < k.channels; c++) r.after[row].push_back(rows[row].get(c, 0));
    return r;
}
