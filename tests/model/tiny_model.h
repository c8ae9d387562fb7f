// Parts of tiny models that only this folder's builder needs.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/model/checkpoint_builder.h"

namespace babai {

using Json = nlohmann::json;

bool IsOneOf(const std::string& family, std::initializer_list<const char*> names);
bool HasLayerNorm(const TinyModel& m);
bool IsTied(const TinyModel& m);
int64_t KvHeads(const TinyModel& m);
int64_t HeadDim(const TinyModel& m);

Json ConfigJson(const TinyModel& m);  // config.json

// As a file of that kind names, fuses, transposes and orders them.
std::vector<NewTensor> SourceTensors(const TinyModel& m, bool gguf);

}  // namespace babai
