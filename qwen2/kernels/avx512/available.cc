// Whether this machine can run the kernels.

// 1 if the processor has what the kernels use, and Linux saves its registers, else 0.
extern "C" int Qwen2Avx512Available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
}
