// A CUDA runtime without a device: enough calls for torch to believe in one H100, so that "cuda"
// tensors of FakeTensorMode run forward, backward, autocast and optimizers on any machine.
// Preloaded before torch's own libcudart. Calls at which the host would wait for the device count.
#include <driver_types.h>
#include <stdlib.h>
#include <string.h>
#define OK return cudaSuccess

static unsigned long waits = 0;
unsigned long fake_cuda_waits(void) { return waits; }

cudaError_t cudaGetDeviceCount(int *n) { *n = 1; OK; }
cudaError_t cudaGetDevice(int *d) { *d = 0; OK; }
cudaError_t cudaSetDevice(int d) { OK; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H100 80GB HBM3 (fake)");
  p->totalGlobalMem = 85899345920UL;
  p->major = 9;
  p->minor = 0;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->regsPerBlock = 65536;
  p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 52428800;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  OK;
}
cudaError_t cudaDriverGetVersion(int *v) { *v = 13020; OK; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13020; OK; }
cudaError_t cudaGetLastError(void) { OK; }
cudaError_t cudaPeekAtLastError(void) { OK; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *l, int *h) { *l = 0; *h = -5; OK; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = malloc(8); OK; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = malloc(8); OK; }
cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = malloc(8); OK; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { OK; }
cudaError_t cudaStreamQuery(cudaStream_t s) { OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { waits++; OK; }
cudaError_t cudaDeviceSynchronize(void) { waits++; OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) {
  *c = cudaStreamCaptureStatusNone;
  OK;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = malloc(8); OK; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = malloc(8); OK; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { OK; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { OK; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { OK; }
cudaError_t cudaEventQuery(cudaEvent_t e) { OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { waits++; OK; }
cudaError_t cudaEventElapsedTime(float *t, cudaEvent_t a, cudaEvent_t b) { *t = 1.0f; OK; }
cudaError_t cudaMalloc(void **p, size_t n) { *p = aligned_alloc(512, (n + 511) / 512 * 512); OK; }
cudaError_t cudaFree(void *p) { OK; }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { return cudaMalloc(p, n); }
cudaError_t cudaFreeHost(void *p) { OK; }
cudaError_t cudaMemGetInfo(size_t *f, size_t *t) {
  *f = 84000000000UL;
  *t = 85899345920UL;
  OK;
}
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t st) {
  memcpy(d, s, n);
  OK;
}
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) {
  waits++;
  memcpy(d, s, n);
  OK;
}
cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t s) { memset(d, v, n); OK; }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { OK; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { OK; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->binaryVersion = 90;
  a->maxThreadsPerBlock = 1024;
  OK;
}
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { OK; }
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) { *v = 0; OK; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t m) {
  *n = 1;
  OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *n, const void *f, int b, size_t m, unsigned g) {
  *n = 1;
  OK;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeUnregistered;
  OK;
}
