// A refusal that a caller can act on: canonical code + stable reason + field.
//
// Every error that a request, a file or a device can cause is made by Refuse(). The reason and the
// field travel as payloads of the absl::Status; server/rpc turns them into google.rpc.ErrorInfo
// (domain "babai") and the command line prints them. Messages name the remedy, never a server path
// outside the caller's own input, a pointer or an upstream body.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace babai {

// Stable reasons, the whole list. UPPER_SNAKE, at most 63 characters; never renamed, only added.
namespace reason {
inline constexpr std::string_view kInvalidField = "INVALID_FIELD";
inline constexpr std::string_view kInvalidUri = "INVALID_URI";
inline constexpr std::string_view kSourceNotAllowed = "SOURCE_NOT_ALLOWED";
inline constexpr std::string_view kSourceNotFound = "SOURCE_NOT_FOUND";
inline constexpr std::string_view kInvalidModelFile = "INVALID_MODEL_FILE";
inline constexpr std::string_view kNonFiniteWeights = "NON_FINITE_WEIGHTS";
inline constexpr std::string_view kUnsupportedArchitecture = "UNSUPPORTED_ARCHITECTURE";
inline constexpr std::string_view kUnsupportedFormat = "UNSUPPORTED_FORMAT";
inline constexpr std::string_view kUnsupportedShape = "UNSUPPORTED_SHAPE";
inline constexpr std::string_view kInvalidTokenizer = "INVALID_TOKENIZER";
inline constexpr std::string_view kTemplateFailed = "TEMPLATE_FAILED";
inline constexpr std::string_view kCalibrationTooSmall = "CALIBRATION_TOO_SMALL";
inline constexpr std::string_view kCalibrationNonFinite = "CALIBRATION_NON_FINITE";
inline constexpr std::string_view kHessianNotPositiveDefinite = "HESSIAN_NOT_POSITIVE_DEFINITE";
inline constexpr std::string_view kModelNotFound = "MODEL_NOT_FOUND";
inline constexpr std::string_view kModelNotReady = "MODEL_NOT_READY";
inline constexpr std::string_view kModelBusy = "MODEL_BUSY";
inline constexpr std::string_view kModelExists = "MODEL_EXISTS";
inline constexpr std::string_view kJobNotFound = "JOB_NOT_FOUND";
inline constexpr std::string_view kRequestIdReused = "REQUEST_ID_REUSED";
inline constexpr std::string_view kContextTooLong = "CONTEXT_TOO_LONG";
inline constexpr std::string_view kQueueFull = "QUEUE_FULL";
inline constexpr std::string_view kKvExhausted = "KV_EXHAUSTED";
inline constexpr std::string_view kNonFiniteLogits = "NON_FINITE_LOGITS";
inline constexpr std::string_view kSlowReader = "SLOW_READER";
inline constexpr std::string_view kOutOfMemory = "OUT_OF_MEMORY";
inline constexpr std::string_view kOutOfDisk = "OUT_OF_DISK";
inline constexpr std::string_view kIoError = "IO_ERROR";
inline constexpr std::string_view kChecksumMismatch = "CHECKSUM_MISMATCH";
inline constexpr std::string_view kSchemaTooNew = "SCHEMA_TOO_NEW";
inline constexpr std::string_view kDeviceUnavailable = "DEVICE_UNAVAILABLE";
inline constexpr std::string_view kDeviceLost = "DEVICE_LOST";
inline constexpr std::string_view kCancelled = "CANCELLED_BY_CALLER";
inline constexpr std::string_view kDraining = "DRAINING";
inline constexpr std::string_view kUnimplemented = "NOT_IN_THIS_RELEASE";
inline constexpr std::string_view kInternal = "INTERNAL";
}  // namespace reason

// A non-OK status carrying `why` (one of reason::) and `field`, the path of the request field, file
// or tensor at fault ("recipe.bits", "model.safetensors: tensor 'x'"); empty if there is none.
absl::Status Refuse(absl::StatusCode code, std::string_view why, std::string_view field,
                    std::string_view message);

// The most common case: INVALID_ARGUMENT, INVALID_FIELD.
absl::Status InvalidField(std::string_view field, std::string_view message);

// What Refuse() attached; empty strings for a status made elsewhere.
std::string ReasonOf(const absl::Status& status);
std::string FieldOf(const absl::Status& status);

}  // namespace babai
