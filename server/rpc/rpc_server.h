// The gRPC server: every service of babai.v1, google.longrunning.Operations, health and reflection
// on one port.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/jobs/job.h"
#include "server/rpc/call.h"
#include "server/rpc/model_service.h"
#include "server/store/catalog.h"

namespace babai {

struct RpcOptions {
  std::string listen = "127.0.0.1:50051";  // host:port, port 0 = any free one; or unix:/path
  // There is no authentication yet, so an address other machines can reach needs this.
  bool insecure_listen_anywhere = false;
  absl::Duration heartbeat = absl::Seconds(10);  // of WatchQuantization
  ServerFacts facts;
  CallCenter::Log on_call;  // thread-safe, may be null
};

// Not owned; must outlive the server.
struct RpcBackends {
  Engine* engine = nullptr;
  Catalog* catalog = nullptr;
  JobManager* jobs = nullptr;
  std::function<absl::Status(const QuantizeSpec&)> check_quantize;
};

// Thread-safe.
class RpcServer {
 public:
  // Listens and serves when it returns. InvalidArgument: the address; FailedPrecondition: not a
  // loopback address; Unavailable: the port is taken.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(RpcOptions options, RpcBackends backends);
  virtual ~RpcServer() = default;

  virtual const std::string& address() const = 0;  // with the real port

  // A job changed: wakes its watchers. Cheap.
  virtual void OnJobChange(std::string_view id) = 0;

  // Health says NOT_SERVING and new work is refused with DRAINING; running calls go on.
  virtual void BeginDrain() = 0;
  // Ends calls that still run at `deadline`, then stops. Idempotent.
  virtual void Stop(absl::Time deadline) = 0;
};

// Whether only this host can reach `address` ("127.0.0.1:1", "localhost:0", "[::1]:1",
// "unix:...").
bool IsLoopback(std::string_view address);

}  // namespace babai
