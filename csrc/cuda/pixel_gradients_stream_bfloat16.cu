// One type a file: they compile side by side.
#include "cuda/pixel_gradients_stream.cuh"

namespace alges::cuda_pixel_gradients {

void launch_stream_bfloat16(const Pass& pass, const StreamPlan& plan, int64_t images, void* stream) {
  launch_stream<Bfloat16>(pass, plan, images, stream);
}

}  // namespace alges::cuda_pixel_gradients
