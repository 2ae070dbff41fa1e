// Holds one build of the CPU kernel to batch normalization written out, without Python: for instruction sets that are
// only emulated, and for sanitizers. Prints a line for every case that fails, else one with the number of cases.
#include <cstdio>

#include "driver_calls.h"

namespace {

// What a channel's sums, its deviation and a few products may take, in steps of the type they are computed in, as the
// tests from Python allow: their 3e-6 are 25 steps of float32. It goes with the size of the terms, not with what is
// left where they cancel; one element lost from the longest sum here is many times that.
constexpr double STEPS = 25;

// How much less exact the variance is where the shift is not the mean, which is (mean - shift)^2 variances off: near
// zero none may be taken, and after a jump it is the first value. Of more than 64 the kernel sums again, exactly.
double loss_of(int kind, double square_of_mean_beside_first, double var) {
    if (kind == NEAR) return 1 + MEAN_OF[NEAR] * MEAN_OF[NEAR];
    if (kind != JUMP || square_of_mean_beside_first >= 64.5 * var) return 1;
    return 1 + square_of_mean_beside_first / var;
}

// What rounding to a type takes of a number at most.
template <class A>
constexpr double ROUNDING = std::numeric_limits<A>::epsilon() / 2;
double rounding_of(int type) {
    return type == FLOAT ? ROUNDING<float> : type == DOUBLE ? ROUNDING<double> : 1.0 / 256;
}

// The largest error, as a share of what it may be.
struct Worst {
    double share = 0;
    const char* of = "";

    void see(const char* name, double error, double bound) {
        double found = error > 0 ? error / bound : 0;
        if (std::isnan(error)) found = INFINITY;
        if (found > share) share = found, of = name;
    }
};

template <class T>
Worst against_the_formula(const Case& k, uint64_t seed) {
    using Exact = std::conditional_t<sizeof(T) == 8, long double, double>;
    const Results<T> r = run<T>(k, seed);
    const double storing = rounding_of(k.type), storing_row = rounding_of(k.rows) + 4 * ROUNDING<double>;
    const long n = k.n();
    Worst worst;
    for (long c = 0; c < k.channels; c++) {
        // All beside the first value: a far mean would round digits away here too.
        const Exact first = number(r.x[k.at(c, 0)]);
        auto beside = [&](long i) { return number(r.x[k.at(c, i)]) - first; };
        Exact rest = 0, var = 0;
        for (long i = 0; i < n; i++) rest += beside(i) / n;
        for (long i = 0; i < n; i++) var += (beside(i) - rest) * (beside(i) - rest) / n;
        const double steps = STEPS * 2 * ROUNDING<wide<T>> * loss_of(k.kind, rest * rest, var);
        const Exact mean = first + rest, rstd = 1 / std::sqrt(var + EPS);
        const Exact weight = r.before[WEIGHT][c], bias = r.before[BIAS][c];
        // What the mean may be off, in normalized values. A channel of a far first value is summed again, in double.
        const bool again = k.kind == JUMP;
        const Exact off = (steps * std::sqrt(var) + (again ? n * ROUNDING<double> * std::abs(mean) : 0)) * rstd;
        auto normalized = [&](long i) { return (beside(i) - rest) * rstd; };
        // The mask is that of the output as it was written: no rounding near a kink decides it, and a backward with
        // another mask than its forward's fails.
        auto cotangent = [&](long i) -> Exact {
            const double g = number(r.g[k.at(c, i)]);
            return k.act == NONE || number(r.y[k.at(c, i)]) > 0 ? g : k.act == RELU ? 0 : g * SLOPE;
        };
        Exact sum = 0, along = 0, size = 0, size_along = 0, largest = 0;
        for (long i = 0; i < n; i++) {
            const Exact h = normalized(i), d = cotangent(i), z = h * weight + bias;
            const Exact y = k.act == NONE || z > 0 ? z : k.act == RELU ? 0 : z * SLOPE;
            worst.see("the output", std::abs(number(r.y[k.at(c, i)]) - y),
                      steps * (std::abs(h * weight) + std::abs(bias)) + off * std::abs(weight) + storing * std::abs(y));
            sum += d, along += d * h, size += std::abs(d), size_along += std::abs(d * h);
            if (std::abs(z) > largest) largest = std::abs(z);
        }
        // Normalized values that are taken back from the output have lost what storing it took.
        const Exact lost = off + (k.in_place ? 2 * storing * largest / std::abs(weight) : 0);
        for (long i = 0; i < n && !k.sums_only; i++) {
            const Exact h = normalized(i), d = cotangent(i), g_x = weight * rstd * (d - sum / n - h * along / n);
            const Exact terms = std::abs(d) + size / n + std::abs(h) * size_along / n;
            const Exact less = lost * (size_along + (std::abs(h) + lost) * size) / n;
            worst.see("the gradient of x", std::abs(number(r.g_x[k.at(c, i)]) - g_x),
                      std::abs(weight * rstd) * (steps * terms + less) + storing * std::abs(g_x));
        }
        if (k.bare) continue;
        worst.see("the gradient of weight", std::abs(r.after[G_WEIGHT][c] - along),
                  steps * size_along + lost * size + storing_row * std::abs(along));
        worst.see("the gradient of bias", std::abs(r.after[G_BIAS][c] - sum),
                  steps * size + storing_row * std::abs(sum));
        const Exact was = r.before[RUNNING_MEAN][c], var_was = r.before[RUNNING_VAR][c], unbiased = var * n / (n - 1);
        worst.see("the running mean", std::abs(r.after[RUNNING_MEAN][c] - (was + (mean - was) * SHARE)),
                  SHARE * off / rstd + storing_row * (std::abs(was) + SHARE * std::abs(mean)));
        worst.see("the running variance", std::abs(r.after[RUNNING_VAR][c] - (var_was + (unbiased - var_was) * SHARE)),
                  steps * SHARE * unbiased + storing_row * (var_was + SHARE * unbiased));
    }
    return worst;
}

// What is not finite leaves no number in its channel, and no trace in any other.
template <class T>
Worst in_its_channel(const Case& k, uint64_t seed, int poison, long c_poisoned, long i_poisoned) {
    const Results<T> clean = run<T>(k, seed), found = run<T>(k, seed, poison, c_poisoned, i_poisoned);
    Worst worst;
    for (long c = 0; c < k.channels; c++) {
        auto see = [&](const char* name, double with, double without, bool may_be_a_number = false) {
            const bool right = c == c_poisoned ? may_be_a_number || !std::isfinite(with) : with == without;
            worst.see(name, right ? 0 : INFINITY, 1);
        };
        for (long i = 0; i < k.n(); i++) {
            const long at = k.at(c, i);
            see("the output, of what is not finite,", number(found.y[at]), number(clean.y[at]));
            see("the gradient of x, of what is not finite,", number(found.g_x[at]), number(clean.g_x[at]));
        }
        for (int row = RUNNING_MEAN; row < ROOMS; row++) {
            const bool may_be_a_number = poison == NO_WEIGHT || row == G_BIAS;
            see("a row, of what is not finite,", found.after[row][c], clean.after[row][c], may_be_a_number);
        }
    }
    return worst;
}

long cases = 0, failures = 0;

void judge(const Case& k, const Worst& found) {
    cases++;
    if (found.share <= 1) return;
    failures++;
    const char* const types[] = {"float32", "bfloat16", "float64"};
    const char* const acts[] = {"no activation", "relu", "leaky_relu"};
    const char* const kinds[] = {"mean 0", "mean 3", "mean 1e4", "mean 1e6", "constant", "a jump"};
    const char* const places[] = {"ends at a fence", "begins at a fence", "one element on"};
    std::printf("%s is %.3g times what it may be off: (%ld, %ld, %ld)%s, %s, %s, %s, ", found.of, found.share,
                k.samples, k.channels, k.positions, k.last ? " channels last" : "", types[k.type], acts[k.act],
                kinds[k.kind]);
    std::printf("%s, rows: %s, threads: %d, cache: %ld, past it: %ld%s%s\n", places[k.place], k.bare ? "none" : types[k.rows],
                k.threads, k.hints.own, k.hints.stream, k.in_place ? ", in place" : "", k.sums_only ? ", sums only" : "");
}

template <class F>
void in_type(int type, F&& f) {
    type == FLOAT ? f(float{}) : type == DOUBLE ? f(double{}) : f(bf16{});
}

// All types, activations and modes of one shape; what else there is to choose is drawn.
void sweep(long samples, long channels, long positions, bool last, int kind = KINDS, int threads = 1) {
    static uint64_t state = 1;
    auto choose = [](uint64_t choices) { return int(next(state) % choices); };
    for (int type = FLOAT; type <= DOUBLE; type++) {
        for (int mode = 0; mode < 5; mode++) {
            Case k{samples, channels, positions, last, threads, type};
            k.in_place = mode >= 3;  // which ReLU has none of: nothing can be taken back from its zeros
            k.act = mode == 3 ? NONE : mode == 4 ? LEAKY_RELU : Activation(mode);
            k.kind = kind == KINDS ? choose(KINDS) : kind;
            k.place = choose(PLACES), k.rows = choose(3), k.bare = choose(8) == 0, k.sums_only = choose(8) == 0;
            k.hints.own = choose(2) ? 512 * 1024 : 8192;  // a small one sends small problems down the ways of large ones
            k.hints.shared = choose(2) ? 1 << 20 : 0, k.hints.stretch = choose(2) ? 65536 : 0;
            k.hints.stream = choose(2), k.hints.stream_fresh = true, k.hints.ahead = choose(2) ? 512 : 0;
            k.hints.next = choose(2), k.hints.pairs = choose(2);
            const uint64_t seed = next(state);
            in_type(type, [&](auto t) { judge(k, against_the_formula<decltype(t)>(k, seed)); });
        }
    }
}

void sweep_poisons(long samples, long channels, long positions, bool last) {
    for (int type = FLOAT; type <= DOUBLE; type++) {
        for (int act = NONE; act <= LEAKY_RELU; act++) {
            for (int poison = NOT_A_NUMBER; poison < POISONS; poison++) {
                for (int place = 0; place < 3; place++) {
                    const Case k{samples, channels, positions, last, 1, type, act};
                    const long i = place * (k.n() - 1) / 2;
                    const long c = channels * 2 / 3;
                    in_type(type, [&](auto t) { judge(k, in_its_channel<decltype(t)>(k, 7, poison, c, i)); });
                }
            }
        }
    }
}

}  // namespace

int main() {
    for (long m = 1; m <= 70; m++) {
        sweep(3, 5, m, false);
        sweep(7, m, 1, true);
        sweep(3, m, 6, true);
    }
    // As images and as rows of channels, with every kind of values.
    const long small[][3] = {{2, 9, 1},  {5, 1, 3},   {128, 64, 1}, {70, 130, 1}, {6, 40, 49},
                             {4, 33, 16}, {3, 17, 81}, {100, 5, 9},  {2, 1, 1024}, {2, 2, 2500}};
    for (const auto& [samples, channels, positions] : small) {
        for (int kind = 0; kind < KINDS; kind++) {
            if (positions > 1) sweep(samples, channels, positions, false, kind);
            sweep(samples, channels, positions, true, kind);
        }
    }
    // Enough for work to be cut for several threads (here one does it all, piece by piece), and for a jump that the
    // kernel does not bear.
    const long large[][3] = {{1100, 61, 1}, {200, 330, 1}, {4, 150, 111}, {2, 3, 11001}, {300, 3, 74}};
    for (const auto& [samples, channels, positions] : large) {
        sweep(samples, channels, positions, positions == 1, KINDS, 3);
        sweep(samples, channels, positions, positions == 1, JUMP, 1);
    }
    sweep_poisons(8, 5, 100, false);
    sweep_poisons(6, 20, 9, false);
    sweep_poisons(6, 19, 9, true);
    sweep_poisons(40, 20, 1, true);
    if (!failures) std::printf("%ld cases are right (%s)\n", cases, NORMSCOPE_ISA);
    return failures != 0;
}
