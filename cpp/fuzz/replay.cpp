// Runs a fuzz target over the files of folders, once each: the corpus as an ordinary test, with
// any compiler. Each file is also cut short at many places. Usage: replay_NAME FOLDER...
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  size_t n_files = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path(), std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
      const uint8_t* data = reinterpret_cast<const uint8_t*>(bytes.data());
      const size_t step = std::max<size_t>(1, bytes.size() / 64);
      for (size_t size = 0; size < bytes.size(); size += step) LLVMFuzzerTestOneInput(data, size);
      LLVMFuzzerTestOneInput(data, bytes.size());
      ++n_files;
    }
  }
  std::printf("%zu files\n", n_files);
  return n_files > 0 ? 0 : 1;  // an empty corpus tests nothing
}
