// The objects that `babai --json` prints. Names are part of the command line's contract: only
// added.
#pragma once

#include <vector>

#include "babai/v1/evaluation.pb.h"
#include "babai/v1/generation.pb.h"
#include "babai/v1/models.pb.h"
#include "babai/v1/quantization.pb.h"
#include "google/longrunning/operations.pb.h"
#include "nlohmann/json.hpp"

namespace babai::client {

using Json = nlohmann::ordered_json;

Json ToJson(const v1::Model& model, bool full);
Json ToJson(const google::longrunning::Operation& operation);  // a job or an evaluation
Json ToJson(const v1::EvaluateResult& result);
Json ToJson(const v1::GenerateResult& result);
Json ToJson(const v1::ServerInfo& info);

// Generated tokens a second after the first; over everything when there is only one.
double TokensPerSecond(const v1::Finish& finish);

const char* StateName(v1::Model::State state);             // "LOADED"
const char* StateName(v1::QuantizeMetadata::State state);  // "QUANTIZING"
const char* StateName(v1::EvaluateMetadata::State state);
const char* ReasonName(v1::FinishReason reason);  // "eos", "stop_string", "length"

// "job-..." of "operations/job-..."
// Over the quantized linears, everything stored for them counted; 0 without any.
double LinearBitsPerWeight(const v1::Model& model);
// Every set field, in the JSON form of a recipe.
Json RecipeOptions(const v1::Recipe& recipe);
std::string IdOf(const google::longrunning::Operation& operation);

double Seconds(const google::protobuf::Duration& duration);

}  // namespace babai::client
