/* Which processors get which loops.  IBT_PLAIN leaves the vectors out, IBT_NO_AVX512 takes the shorter ones: for tests.
 *
 * IBT_DISPATCH defines a function from an always-inline body, compiled once for each level of vector
 * instructions; the best one that the processor has is taken at each call. Where the compiler or the
 * processor is another, only the body as it stands is compiled.
 */
#ifndef IBT_SIMD_H
#define IBT_SIMD_H

#if defined(__GNUC__) && defined(__x86_64__) && !defined(IBT_PLAIN)
#define IBT_X86 1
#else
#define IBT_X86 0
#endif

#if defined(__GNUC__)
#define IBT_INLINE static inline __attribute__((always_inline))
#else
#define IBT_INLINE static inline
#endif

#if IBT_X86
#define IBT_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,bmi2")))
#define IBT_AVX2 __attribute__((target("avx2,bmi2")))

static inline int
ibt_has_avx512(void)
{
#if defined(IBT_NO_AVX512)
    return 0;
#else
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi2");
#endif
}

static inline int
ibt_has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}

#define IBT_DISPATCH(linkage, type, name, body, parameters, arguments)         \
    IBT_AVX512 static type name##_avx512 parameters { return body arguments; } \
    IBT_AVX2 static type name##_avx2 parameters { return body arguments; }     \
    static type name##_base parameters { return body arguments; }              \
    linkage type name parameters                                               \
    {                                                                          \
        if (ibt_has_avx512())                                                  \
            return name##_avx512 arguments;                                    \
        if (ibt_has_avx2())                                                    \
            return name##_avx2 arguments;                                      \
        return name##_base arguments;                                          \
    }
#else
#define IBT_DISPATCH(linkage, type, name, body, parameters, arguments) \
    linkage type name parameters                                       \
    {                                                                  \
        return body arguments;                                         \
    }
#endif

#endif
