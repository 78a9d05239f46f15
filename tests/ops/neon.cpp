// The CPU core's pixel_gradients without Python, to run under an emulator: a call on standard input, its outputs on standard
// output. Input: 13 int64 (B, d, K, D, H, W, kD, kH, kW, the type's index, the inputs of a hidden layer or 0, rows and columns of
// a grid of windows or 0), features (B, d, D, H, W) or inputs (B, D, H, W, c), weight, bias, valid, then the hidden layer's
// weight and bias. Output: the instruction set's name in 8 bytes; then every output, in the order of OUTPUTS, or image and
// outline of the windows.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/pixel_gradients.h"

namespace {

template <class T>
std::vector<T> read(int64_t n) {
  std::vector<T> values(n);
  if (std::fread(values.data(), sizeof(T), n, stdin) != static_cast<size_t>(n)) std::abort();
  return values;
}

template <class T>
void write(const std::vector<T>& values) {
  std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

}  // namespace

int main() {
  const std::vector<int64_t> shape = read<int64_t>(13);
  alges::PixelGradientsCall call{};
  call.batch = shape[0], call.channels = shape[1], call.classes = shape[2], call.threads = 1;
  for (int i = 0; i < 3; ++i) call.size[i] = shape[3 + i], call.kernel[i] = shape[6 + i];
  call.features.type = static_cast<alges::Type>(shape[9]);

  const int64_t B = shape[0], d = shape[1], K = shape[2], pixels = shape[3] * shape[4] * shape[5];
  const int64_t per_image = K * d * shape[6] * shape[7] * shape[8];
  const int64_t planar[5] = {d * pixels, pixels, shape[4] * shape[5], shape[5], 1};
  const int64_t mask[5] = {pixels, 0, shape[4] * shape[5], shape[5], 1};
  std::memcpy(call.features.stride, planar, sizeof planar);
  std::memcpy(call.valid.stride, mask, sizeof mask);
  const int64_t c = shape[10], channels = c ? c : d, n_windows = shape[11] * shape[12];
  const int64_t together[5] = {c * pixels, 1, c * shape[4] * shape[5], c * shape[5], c};
  if (c) std::memcpy(call.features.stride, together, sizeof together);
  const std::vector<char> features = read<char>(B * channels * pixels * (call.features.type == alges::Type::float32 ? 4 : 2));
  const std::vector<float> weight = read<float>(per_image), bias = read<float>(K);
  const std::vector<char> valid = read<char>(B * pixels);
  call.features.data = features.data(), call.valid.data = valid.data();
  call.valid.type = alges::Type::boolean;
  call.weight = weight.data(), call.bias = bias.data();
  const std::vector<float> hidden_weight = read<float>(d * c), hidden_bias = read<float>(c ? d : 0);
  if (c) call.inputs = c, call.hidden_weight = hidden_weight.data(), call.hidden_bias = hidden_bias.data();

  std::vector<char> name(8);
  std::strncpy(name.data(), alges::name(alges::isa()), 7);
  write(name);
  if (n_windows) {
    std::vector<float> image(B * n_windows * K * d), outline(B * n_windows);
    call.rows = shape[11], call.columns = shape[12], call.image = image.data(), call.outline = outline.data();
    call.valid = {};
    alges::pixel_gradients(call);
    write(image), write(outline);
    return 0;
  }
  std::vector<float> image(B * per_image), semantic(B * K), semantic_vector(B * per_image), norm_map(B * pixels), entropy(B),
      margin(B), confidence(B), class_mass(B * K), class_entropy(B * K), feature_sum(B * d);
  std::vector<int64_t> class_pixels(B * K);
  call.image = image.data(), call.semantic = semantic.data(), call.semantic_vector = semantic_vector.data();
  call.norm_map = norm_map.data(), call.class_pixels = class_pixels.data();
  call.entropy = entropy.data(), call.margin = margin.data(), call.confidence = confidence.data();
  call.class_mass = class_mass.data(), call.class_entropy = class_entropy.data(), call.feature_sum = feature_sum.data();
  alges::pixel_gradients(call);

  write(image), write(semantic), write(semantic_vector), write(norm_map), write(class_pixels);
  write(entropy), write(margin), write(confidence), write(class_mass), write(class_entropy), write(feature_sum);
}
