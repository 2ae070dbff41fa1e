// What a call is given, how channels lie in memory, and how work goes over threads.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>

#include "vector.h"

enum Activation { NONE = 0, RELU = 1, LEAKY_RELU = 2 };
enum Type { FLOAT = 0, BFLOAT16 = 1, DOUBLE = 2 };

// A row of one value a channel, of any of the types; null for none.
struct PerChannel {
    void* data = nullptr;
    int type = FLOAT;

    double get(long c, double otherwise) const {
        if (!data) return otherwise;
        if (type == FLOAT) return ((const float*)data)[c];
        if (type == DOUBLE) return ((const double*)data)[c];
        return widen(((const bf16*)data)[c]);
    }
    void set(long c, double value) const {
        if (!data) return;
        if (type == FLOAT) {
            ((float*)data)[c] = (float)value;
        } else if (type == DOUBLE) {
            ((double*)data)[c] = value;
        } else {
            float f = (float)value;
            uint32_t u;
            memcpy(&u, &f, 4);
            uint32_t rounded = f != f ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
            ((bf16*)data)[c] = bf16{uint16_t(rounded)};
        }
    }
};

// How memory is gone about: from the machine's caches, and a calibration. No bit of a result depends on any of it.
struct Hints {
    long own = 512 * 1024;       // bytes of a core's own cache
    long shared = 0;             // bytes of the cache behind it, which all cores have together; 0 for none
    long stretch = 0;            // bytes that memory is to be read in at least, where a cache has room for it; 0 for any
    long ahead = 0;              // bytes that outputs are fetched for writing ahead; 0 for not at all
    long stream = 0;             // bytes of an output from which on it goes past the cache; 0 for never
    bool stream_fresh = false;   // whether that is so too on pages that the system still has to hand out
    bool next = false;           // whether the second pass over a block fetches the next block
    bool pairs = false;          // whether rows are taken in pairs, and those further on fetched
    bool large_pages = true;     // whether fresh outputs are asked for in large pages
};

struct Problem {
    const void* x = nullptr;   // in the backward of the in-place mode: the output
    const void* g = nullptr;   // cotangent of the output
    void* out = nullptr;       // y, or the cotangent of x
    void* saved = nullptr;     // (6, C): mean as a high and a low part, reciprocal deviation, scale, offset, variance
    PerChannel weight, bias, running_mean, running_var, g_weight, g_bias;
    long samples = 0, channels = 0, positions = 0;
    bool last = false;         // channels side by side in memory
    double eps = 0, share = 0, slope = 0;
    int threads = 1;
    Hints hints;
    bool fresh = true;         // the output lies on pages that the system still has to hand out
    void (*team)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // libgomp's GOMP_parallel, as torch loaded it
    int (*rank)() = nullptr;   // libgomp's omp_get_thread_num: which of the team is asking
};

// Below this many bytes waking other threads costs more than they save.
constexpr long SERIAL_BYTES = 128 * 1024;

// Each thread begins with a stretch of its own, the same share of every job: what it has read in one job, the next finds
// in its cache. Who is done helps the others.
template <class F>
struct Job {
    struct alignas(64) Stretch {
        std::atomic<long> taken{0};
        long from = 0, count = 0;
    };
    static constexpr int MOST = 64;
    F* work;
    int (*rank)();
    int stretches;
    bool backward;  // each stretch from its end
    Stretch stretch[MOST];

    Job(F* f, long items, int threads, int (*which)(), bool from_end)
        : work(f), rank(which), stretches(threads < MOST ? threads : MOST), backward(from_end) {
        for (int k = 0; k < stretches; k++) {
            stretch[k].from = items * k / stretches;
            stretch[k].count = items * (k + 1) / stretches - stretch[k].from;
        }
    }
    static void run(void* p) {
        Job* job = (Job*)p;
        const int first = job->rank ? job->rank() % job->stretches : 0;
        for (int k = 0; k < job->stretches; k++) {
            Stretch& s = job->stretch[(first + k) % job->stretches];
            for (long i; (i = s.taken.fetch_add(1, std::memory_order_relaxed)) < s.count;)
                (*job->work)(s.from + (job->backward ? s.count - 1 - i : i));
        }
    }
};

// Not for double, which nobody trains in, and not where it would be a plain store.
template <class T>
constexpr bool CAN_STREAM = NORMSCOPE_BYTES >= 32 && sizeof(T) < 8;

// Past the cache only where that pays: large outputs, not over an input.
inline bool streams(const Problem& p, long all) {
    const Hints& h = p.hints;
    // Fresh outputs below 8 MiB cost pages, not the cache: networks of five convolutions took up to 1.08 of the time.
    const bool fits = !p.fresh || (h.stream_fresh && all >= (long{8} << 20));
    return h.stream > 0 && all >= h.stream && fits && p.out && p.out != p.x && p.out != p.g;
}

// Items are taken as threads come free; no result depends on which thread took one.
template <class F>
void parallel(const Problem& p, int threads, long items, F&& work, bool backward = false) {
    if (threads > items) threads = (int)items;
    if (threads <= 1 || !p.team) {
        for (long i = 0; i < items; i++) work(backward ? items - 1 - i : i);
        return;
    }
    using Work = typename std::remove_reference<F>::type;
    Job<Work> job(&work, items, threads, p.rank, backward);
    p.team(Job<Work>::run, &job, (unsigned)threads, 0);
}

// Memory of one call; a small call's is on the stack.
class Scratch {
    alignas(64) char near[32768];
    char* far = nullptr;
    char* free_from;

   public:
    explicit Scratch(size_t bytes) {
        if (bytes > sizeof near) {
            far = (char*)std::malloc(bytes + 64);
            if (!far) throw std::bad_alloc();
        }
        free_from = far ? (char*)(((uintptr_t)far + 63) & ~uintptr_t(63)) : near;
    }
    ~Scratch() { std::free(far); }
    Scratch(const Scratch&) = delete;
    template <class A>
    A* take(size_t count) {
        A* found = (A*)free_from;
        free_from += (count * sizeof(A) + 63) & ~size_t(63);
        return found;
    }
};

constexpr long FLUSH = 1024;       // values that are summed in float before they go to double
constexpr long ROWS = 64;          // the same for a column, whose lanes are columns
constexpr long GROUP = 8 * ROWS;   // rows of one work item

inline long ceil_div(long a, long b) { return (a + b - 1) / b; }
inline long clamp(long value, long low, long high) { return value < low ? low : value > high ? high : value; }

// Channels as runs of `positions` values, one in every sample. Sums go by pieces of at most about FLUSH values.
struct Runs {
    long samples, channels, positions, per_piece, pieces_of_run, pieces;

    explicit Runs(const Problem& p) : samples(p.samples), channels(p.channels), positions(p.positions) {
        bool long_runs = positions >= FLUSH;
        pieces_of_run = long_runs ? ceil_div(positions, FLUSH) : 1;
        per_piece = long_runs ? 1 : FLUSH / positions;
        pieces = long_runs ? samples * pieces_of_run : ceil_div(samples, per_piece);
    }
    long at(long sample, long channel) const { return (sample * channels + channel) * positions; }
};
