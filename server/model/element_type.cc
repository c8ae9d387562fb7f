#include "server/model/element_type.h"

#include "server/model/dequantize.h"

namespace babai {
namespace {

constexpr DType kQuantized = DType::kQuantized;

// https://huggingface.co/docs/safetensors; sub-byte types as the smallest whole number of bytes.
constexpr ElementType kSafetensorsTypes[] = {
    {"F32", 1, 4, DType::kF32, DecodeF32},
    {"F16", 1, 2, DType::kF16, DecodeF16},
    {"BF16", 1, 2, DType::kBF16, DecodeBF16},
    {"F64", 1, 8},
    {"C64", 1, 8},
    {"I64", 1, 8},
    {"U64", 1, 8},
    {"I32", 1, 4},
    {"U32", 1, 4},
    {"I16", 1, 2},
    {"U16", 1, 2},
    {"I8", 1, 1},
    {"U8", 1, 1},
    {"BOOL", 1, 1},
    {"F8_E4M3", 1, 1},
    {"F8_E5M2", 1, 1},
    {"F8_E8M0", 1, 1},
    {"F8_E4M3FNUZ", 1, 1},
    {"F8_E5M2FNUZ", 1, 1},
    {"F6_E2M3", 4, 3},
    {"F6_E3M2", 4, 3},
    {"F4", 2, 1},
};

// ggml's enum ggml_type: numbers 4, 5, 31..33 and 36..38 were removed.
constexpr struct {
  uint32_t id;
  ElementType type;
} kGgmlTypes[] = {
    {0, {"F32", 1, 4, DType::kF32, DecodeF32}},
    {1, {"F16", 1, 2, DType::kF16, DecodeF16}},
    {2, {"Q4_0", 32, 18, kQuantized, DecodeQ4_0}},
    {3, {"Q4_1", 32, 20, kQuantized, DecodeQ4_1}},
    {6, {"Q5_0", 32, 22, kQuantized, DecodeQ5_0}},
    {7, {"Q5_1", 32, 24, kQuantized, DecodeQ5_1}},
    {8, {"Q8_0", 32, 34, kQuantized, DecodeQ8_0}},
    {9, {"Q8_1", 32, 36}},
    {10, {"Q2_K", 256, 84, kQuantized, DecodeQ2_K}},
    {11, {"Q3_K", 256, 110, kQuantized, DecodeQ3_K}},
    {12, {"Q4_K", 256, 144, kQuantized, DecodeQ4_K}},
    {13, {"Q5_K", 256, 176, kQuantized, DecodeQ5_K}},
    {14, {"Q6_K", 256, 210, kQuantized, DecodeQ6_K}},
    {15, {"Q8_K", 256, 292}},
    {16, {"IQ2_XXS", 256, 66}},
    {17, {"IQ2_XS", 256, 74}},
    {18, {"IQ3_XXS", 256, 98}},
    {19, {"IQ1_S", 256, 50}},
    {20, {"IQ4_NL", 32, 18}},
    {21, {"IQ3_S", 256, 110}},
    {22, {"IQ2_S", 256, 82}},
    {23, {"IQ4_XS", 256, 136}},
    {24, {"I8", 1, 1}},
    {25, {"I16", 1, 2}},
    {26, {"I32", 1, 4}},
    {27, {"I64", 1, 8}},
    {28, {"F64", 1, 8}},
    {29, {"IQ1_M", 256, 56}},
    {30, {"BF16", 1, 2, DType::kBF16, DecodeBF16}},
    {34, {"TQ1_0", 256, 54}},
    {35, {"TQ2_0", 256, 66}},
    {39, {"MXFP4", 32, 17}},
    {40, {"NVFP4", 64, 36}},
};

}  // namespace

const ElementType* FindSafetensorsType(std::string_view name) {
  for (const ElementType& type : kSafetensorsTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

const ElementType* FindGgmlType(uint32_t id) {
  for (const auto& row : kGgmlTypes) {
    if (row.id == id) return &row.type;
  }
  return nullptr;
}

}  // namespace babai
