// A thin vector type: as many lanes as the instruction set of this build has, for float and double.
//
// Loads widen bfloat16 to float; stores round to nearest even. Arithmetic is the compiler's own on vector types; what it
// does not have (a fused multiply-add that is one on every compiler, masked ends of rows) stands here.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define NORMSCOPE_ISA "AVX-512"
#define NORMSCOPE_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define NORMSCOPE_ISA "AVX2"
#define NORMSCOPE_BYTES 32
#elif defined(__aarch64__)
#define NORMSCOPE_ISA "NEON"
#define NORMSCOPE_BYTES 16
#else
#define NORMSCOPE_ISA "baseline"
#define NORMSCOPE_BYTES 16
#endif

#define INLINE inline __attribute__((always_inline))

struct bf16 {
    uint16_t bits;
};

using vfloat = float __attribute__((vector_size(NORMSCOPE_BYTES)));
using vdouble = double __attribute__((vector_size(NORMSCOPE_BYTES)));
using vuint = uint32_t __attribute__((vector_size(NORMSCOPE_BYTES)));
using vshort = uint16_t __attribute__((vector_size(NORMSCOPE_BYTES / 2)));
using vhalf_float = float __attribute__((vector_size(NORMSCOPE_BYTES / 2)));

template <class A>
struct vector_of;
template <>
struct vector_of<float> {
    using type = vfloat;
};
template <>
struct vector_of<double> {
    using type = vdouble;
};
template <class A>
using vec = typename vector_of<A>::type;
template <class A>
constexpr int lanes = NORMSCOPE_BYTES / sizeof(A);

// The type that values of a storage type are computed in.
template <class T>
struct computed_in {
    using type = T;
};
template <>
struct computed_in<bf16> {
    using type = float;
};
template <class T>
using wide = typename computed_in<T>::type;

template <class A>
INLINE vec<A> spread(A value) {
    return value - vec<A>{};
}

INLINE vfloat fma(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif NORMSCOPE_BYTES == 32
    return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vfloat)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

INLINE vdouble fma(vdouble a, vdouble b, vdouble c) {
#if defined(__AVX512F__)
    return (vdouble)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif NORMSCOPE_BYTES == 32
    return (vdouble)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
    return (vdouble)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

INLINE vfloat widen(vshort h) {
    return (vfloat)(__builtin_convertvector(h, vuint) << 16);
}

// Round to nearest even; a NaN stays one.
INLINE vshort narrow(vfloat v) {
    vuint u = (vuint)v;
    vuint rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    vuint is_nan = (vuint)((u & 0x7fffffffu) > 0x7f800000u);
    rounded = (is_nan & ((u >> 16) | 0x40u)) | (~is_nan & rounded);
    return __builtin_convertvector(rounded, vshort);
}

INLINE float widen(bf16 h) {
    uint32_t u = uint32_t(h.bits) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
// A number as the storage type holds it.
template <class T>
INLINE wide<T> rounded(double value) {
    return (wide<T>)value;
}
template <>
INLINE float rounded<bf16>(double value) {
    float f = (float)value;
    uint32_t u;
    memcpy(&u, &f, 4);
    u &= 0xffff0000u;
    memcpy(&f, &u, 4);
    return f;
}

INLINE float widen(float f) { return f; }
INLINE double widen(double d) { return d; }

INLINE vfloat load(const float* p) {
    vfloat v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE vdouble load(const double* p) {
    vdouble v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE vfloat load(const bf16* p) {
    vshort v;
    memcpy(&v, p, sizeof v);
    return widen(v);
}
INLINE void store(float* p, vfloat v) { memcpy(p, &v, sizeof v); }
INLINE void store(double* p, vdouble v) { memcpy(p, &v, sizeof v); }
INLINE void store(bf16* p, vfloat v) {
    vshort h = narrow(v);
    memcpy(p, &h, sizeof h);
}

// Past the cache, to memory that is a multiple of 64 bytes away from zero; a plain store where there is no such thing.
INLINE void stream(float* p, vfloat v) {
#if NORMSCOPE_BYTES == 64
    _mm512_stream_ps(p, (__m512)v);
#elif NORMSCOPE_BYTES == 32
    _mm256_stream_ps(p, (__m256)v);
#else
    store(p, v);
#endif
}
INLINE void stream(double* p, vdouble v) {
#if NORMSCOPE_BYTES == 64
    _mm512_stream_pd(p, (__m512d)v);
#elif NORMSCOPE_BYTES == 32
    _mm256_stream_pd(p, (__m256d)v);
#else
    store(p, v);
#endif
}
INLINE void end_of_stream() {
#if NORMSCOPE_BYTES >= 32
    _mm_sfence();
#endif
}
// The first n lanes from memory, the others from `fill`.
template <class T>
INLINE vec<wide<T>> load_first(const T* p, long n, vec<wide<T>> fill) {
    T buffer[lanes<wide<T>>];
    store(buffer, fill);
    memcpy(buffer, p, n * sizeof(T));
    return load(buffer);
}
template <class T>
INLINE void store_first(T* p, long n, vec<wide<T>> v) {
    T buffer[lanes<wide<T>>];
    store(buffer, v);
    memcpy(p, buffer, n * sizeof(T));
}
#if defined(__AVX512F__)
template <>
INLINE vfloat load_first<float>(const float* p, long n, vfloat fill) {
    return (vfloat)_mm512_mask_loadu_ps((__m512)fill, __mmask16((1u << n) - 1), p);
}
template <>
INLINE void store_first<float>(float* p, long n, vfloat v) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
}
template <>
INLINE vdouble load_first<double>(const double* p, long n, vdouble fill) {
    return (vdouble)_mm512_mask_loadu_pd((__m512d)fill, __mmask8((1u << n) - 1), p);
}
template <>
INLINE void store_first<double>(double* p, long n, vdouble v) {
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
}
#if defined(__AVX512BW__) && defined(__AVX512VL__)
template <>
INLINE vfloat load_first<bf16>(const bf16* p, long n, vfloat fill) {
    __mmask16 m = __mmask16((1u << n) - 1);
    vfloat v = widen((vshort)_mm256_maskz_loadu_epi16(m, p));
    return (vfloat)_mm512_mask_blend_ps(m, (__m512)fill, (__m512)v);
}
template <>
INLINE void store_first<bf16>(bf16* p, long n, vfloat v) {
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrow(v));
}
#endif
#else
// A fill of bfloat16 would be rounded on its way through the buffer: widen what is there, then choose.
template <>
INLINE vfloat load_first<bf16>(const bf16* p, long n, vfloat fill) {
    float buffer[lanes<float>];
    store(buffer, fill);
    for (long i = 0; i < n; i++) buffer[i] = widen(p[i]);
    return load(buffer);
}
#endif

INLINE double total(vdouble v) {
    double sum = 0;
    for (int i = 0; i < lanes<double>; i++) sum += v[i];
    return sum;
}
// The sums of two lanes each, in double: the lanes hold sums of many values.
INLINE vdouble in_double(vdouble v) { return v; }
INLINE vdouble in_double(vfloat v) {
    vhalf_float low, high;
    memcpy(&low, &v, sizeof low);
    memcpy(&high, (const char*)&v + sizeof low, sizeof high);
    return __builtin_convertvector(low, vdouble) + __builtin_convertvector(high, vdouble);
}
INLINE double total(vfloat v) { return total(in_double(v)); }

// ----------------------------------------------------------------------------------------- U vectors side by side
//
// Of bfloat16 two vectors are taken from one load, those of even and those of odd place: to widen them is one operation
// each, and to narrow them half of what it is in order. What goes lane by lane with such a pair is dealt out likewise.

template <class T>
constexpr bool DEALT = false;
template <>
inline constexpr bool DEALT<bf16> = true;  // inline: of a specialization clang makes a symbol in every file otherwise

#if defined(__clang__)
#define NORMSCOPE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define NORMSCOPE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vuint){__VA_ARGS__})
#endif

// From order to even and odd, and back.
INLINE void deal(vfloat& a, vfloat& b) {
    const vfloat x = a, y = b;
#if NORMSCOPE_BYTES == 64
    a = NORMSCOPE_SHUFFLE(x, y, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    b = NORMSCOPE_SHUFFLE(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif NORMSCOPE_BYTES == 32
    a = NORMSCOPE_SHUFFLE(x, y, 0, 2, 4, 6, 8, 10, 12, 14);
    b = NORMSCOPE_SHUFFLE(x, y, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    a = NORMSCOPE_SHUFFLE(x, y, 0, 2, 4, 6);
    b = NORMSCOPE_SHUFFLE(x, y, 1, 3, 5, 7);
#endif
}
INLINE void gather(vfloat& a, vfloat& b) {
    const vfloat x = a, y = b;
#if NORMSCOPE_BYTES == 64
    a = NORMSCOPE_SHUFFLE(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    b = NORMSCOPE_SHUFFLE(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif NORMSCOPE_BYTES == 32
    a = NORMSCOPE_SHUFFLE(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
    b = NORMSCOPE_SHUFFLE(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    a = NORMSCOPE_SHUFFLE(x, y, 0, 4, 1, 5);
    b = NORMSCOPE_SHUFFLE(x, y, 2, 6, 3, 7);
#endif
}

INLINE bool any_nan(vfloat a, vfloat b) {
#if NORMSCOPE_BYTES == 64
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q) != 0;
#elif NORMSCOPE_BYTES == 32
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q)) != 0;
#else
    const vuint unordered = (vuint)(a != a) | (vuint)(b != b);
    uint64_t halves[2];
    memcpy(halves, &unordered, sizeof halves);
    return (halves[0] | halves[1]) != 0;
#endif
}

// Half a unit of the last place, less where that ends even: what is left after a cut is rounded to nearest even.
INLINE vuint rounded_up(vfloat v) {
    const vuint u = (vuint)v;
    return u + 0x7fffu + ((u >> 16) & 1u);
}
INLINE vuint narrow_pair(vfloat even, vfloat odd) {
    vuint a = rounded_up(even), b = rounded_up(odd);
    if (__builtin_expect(any_nan(even, odd), 0)) {
        const vuint quiet = vuint{} + 0x400000u, lost_a = (vuint)(even != even), lost_b = (vuint)(odd != odd);
        a = (lost_a & ((vuint)even | quiet)) | (~lost_a & a);
        b = (lost_b & ((vuint)odd | quiet)) | (~lost_b & b);
    }
    return (a >> 16) | (b & 0xffff0000u);
}

template <class T, int U>
INLINE void load_several(const T* p, vec<wide<T>>* v) {
    constexpr long L = lanes<wide<T>>;
    if constexpr (DEALT<T> && U % 2 == 0) {
        for (int u = 0; u < U; u += 2) {
            vuint w;
            memcpy(&w, p + u * L, sizeof w);
            v[u] = (vfloat)(w << 16);
            v[u + 1] = (vfloat)(w & 0xffff0000u);
        }
    } else {
        for (int u = 0; u < U; u++) v[u] = load(p + u * L);
    }
}

template <class T, int U, bool STREAM>
INLINE void store_several(T* p, const vec<wide<T>>* v) {
    constexpr long L = lanes<wide<T>>;
    if constexpr (DEALT<T> && U % 2 == 0) {
        for (int u = 0; u < U; u += 2) {
            const vuint w = narrow_pair(v[u], v[u + 1]);
            if constexpr (STREAM) {
                stream((float*)(p + u * L), (vfloat)w);
            } else {
                memcpy(p + u * L, &w, sizeof w);
            }
        }
    } else {
        for (int u = 0; u < U; u++) {
            if constexpr (STREAM && !DEALT<T>) {
                stream(p + u * L, v[u]);
            } else {
                store(p + u * L, v[u]);
            }
        }
    }
}

// One number a lane, dealt out as `load_several` deals out the values; and back into order.
template <class T, int U>
INLINE void load_with(const wide<T>* p, vec<wide<T>>* v) {
    for (int u = 0; u < U; u++) v[u] = load(p + u * lanes<wide<T>>);
    if constexpr (DEALT<T> && U % 2 == 0)
        for (int u = 0; u < U; u += 2) deal(v[u], v[u + 1]);
}
template <class T, int U>
INLINE void in_order(vec<wide<T>>* v) {
    if constexpr (DEALT<T> && U % 2 == 0)
        for (int u = 0; u < U; u += 2) gather(v[u], v[u + 1]);
}
