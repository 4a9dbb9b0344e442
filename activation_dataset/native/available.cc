// Whether this machine can run the library.

// 1 if the processor has the instructions that setup.py allows, else 0.
extern "C" int Available() {
  return __builtin_cpu_supports("avx2");
}
