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
INLINE void stream(bf16* p, vfloat v) {
#if NORMSCOPE_BYTES == 64
    _mm256_stream_si256((__m256i*)p, (__m256i)narrow(v));
#else
    store(p, v);
#endif
}
INLINE void end_of_stream() {
#if NORMSCOPE_BYTES >= 32
    _mm_sfence();
#endif
}
template <bool STREAM, class T, class V>
INLINE void put(T* p, V v) {
    if (STREAM) {
        stream(p, v);
    } else {
        store(p, v);
    }
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
// In double from the first addition on: the lanes hold sums of many values.
INLINE double total(vfloat v) {
    vhalf_float low, high;
    memcpy(&low, &v, sizeof low);
    memcpy(&high, (const char*)&v + sizeof low, sizeof high);
    return total(__builtin_convertvector(low, vdouble) + __builtin_convertvector(high, vdouble));
}
