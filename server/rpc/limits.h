// What one call may bring. Every limit has a field or a flag in the error that it causes.
#pragma once

#include <cstdint>

namespace babai::limits {

inline constexpr int64_t kReceiveBytes = 64 << 20;  // a gRPC message: calibration travels inline
inline constexpr int64_t kPromptBytes = 1 << 20;    // text or all chat messages of a Generate
inline constexpr int64_t kPromptTokens = 1 << 20;
inline constexpr int64_t kInlineTextBytes = 48 << 20;  // calibration or evaluation text
inline constexpr int64_t kTokenizeBytes = 16 << 20;
inline constexpr int64_t kDetokenizeIds = 4 << 20;
inline constexpr int64_t kChatMessages = 1024;
inline constexpr int64_t kRoleBytes = 64;
inline constexpr int64_t kRequestIdBytes = 64;
inline constexpr int64_t kStopStrings = 16;
inline constexpr int64_t kStopStringBytes = 64;
inline constexpr int64_t kStopTokens = 64;
inline constexpr int64_t kLogitBiasEntries = 1024;
inline constexpr int64_t kCalibrationSequences = 4096;
inline constexpr int64_t kCalibrationLength = 32768;
inline constexpr int64_t kUriBytes = 4096;
inline constexpr int64_t kPageSize = 1000;
inline constexpr int64_t kDefaultPageSize = 100;
inline constexpr int64_t kUndeliveredDeltas = 64;  // then the engine parks the sequence
inline constexpr int64_t kWaitingEvaluations = 64;
inline constexpr int64_t kKeptEvaluations = 256;

}  // namespace babai::limits
