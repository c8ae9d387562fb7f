// A matrix of every stored kind, bare and with everything around it, for tests of those who execute
// them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/formats/packed_linear.h"
#include "server/store/packed_model.h"
#include "tests/kernels/formats_fixtures.h"
#include "tests/store/tiny_manifest.h"

namespace babai {

constexpr int64_t kRows = 72, kCols = 160;  // blocks of 8 and of 32; a last panel of 8 rows

inline PackedInt AnyInt(int bits, int64_t group, bool asymmetric) {
  const int64_t groups = kRows * (group >= kCols ? 1 : kCols / group);
  return *PackInt(RandomCodes(kRows * kCols, bits, 1), RandomHalves(groups, 0.01f, 0.1f, 2),
                  asymmetric ? RandomCodes(groups, bits, 3) : std::vector<uint8_t>(), kRows, kCols,
                  group, bits);
}

inline PackedTable TableOf(std::vector<float> values, int bits, int64_t group) {
  PackedTable w = RandomPackedTable(kRows, kCols, group, bits, TableKind::kShared, 7);
  for (size_t i = 0; i < values.size(); ++i) w.table[i] = FloatToHalf(values[i]);
  return w;
}

// Puts everything around a matrix; rows a multiple of 8, columns of 32.
inline void Surround(PackedLinear& w, uint32_t seed) {
  w.sparse = RandomSparseRows(w.rows(), w.cols(), 40, seed);
  if (!std::holds_alternative<EntropyCoded>(w.base)) {
    w.col_scales = RandomHalves(w.cols(), 0.5f, 2, seed + 1);
  }
  w.in = {32, 0xfedcba9876543210u};
  w.out = {8, 3};
}

inline std::map<std::string, PackedLinear> EveryKind() {
  std::map<std::string, PackedLinear> w;
  w["int4"].base = AnyInt(4, 32, true);
  w["int3"].base = AnyInt(3, kCols, false);
  w["odd"].base = TableOf({-3, -1, 1, 3}, 2, 32);
  w["power"].base = TableOf({-1, -0.5f, -0.25f, -0.125f, 0.125f, 0.25f, 0.5f, 1}, 3, kCols);
  w["thirds"].base = TableOf({-1, -0.333f, 0.333f, 1}, 2, 32);
  w["uneven"].base = TableOf({-3, -1, 1, 3}, 2, 20);
  w["row"].base = RandomPackedTable(kRows, kCols, 0, 4, TableKind::kRow, 2);
  w["binary"].base = RandomPackedTable(kRows, kCols, 0, 3, TableKind::kBinary, 3);
  w["coded"].base = RandomEntropyCoded(kRows, kCols, 0.8, 0.5, 4);
  w["wide"].base = RandomEntropyCoded(kRows, kCols, 30, 1, 5);
  w["zero_scale"].base = RandomEntropyCoded(kRows, kCols, 1, 0.2, 6);
  std::get<EntropyCoded>(w["zero_scale"].base).col_scales[kCols / 2] = 0;
  w["zero_scale"].sparse = RandomSparseRows(kRows, kCols, 30, 9);  // one there too
  for (const char* name : {"int4", "int3", "odd", "row", "coded", "wide"}) {
    PackedLinear& full = w[std::string(name) + "_full"];
    full.base = w[name].base;
    Surround(full, 5);
  }
  return w;
}

inline std::vector<float> Normal(int64_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& v : values) v = normal(rng);
  return values;
}

// A packed model of these, and of a matrix "dense" in bf16.
inline void WriteLinears(const std::map<std::string, PackedLinear>& linears,
                         const std::vector<float>& dense, const std::filesystem::path& staging,
                         const std::filesystem::path& dir) {
  auto writer = *PackedModelWriter::Create(staging, dir);
  for (const auto& [name, w] : linears) ASSERT_TRUE(writer->AddLinear(name, w.view()).ok());
  ASSERT_TRUE(writer->AddDense("dense", dense, {kRows, kCols}, DType::kBF16).ok());
  ASSERT_TRUE(writer->FinishFile("rest.safetensors").ok());
  ASSERT_TRUE(writer->Commit(TinyManifest()).ok());
}

}  // namespace babai
