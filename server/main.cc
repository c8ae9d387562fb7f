// babai-server.
#include "server/flags.h"
#include "server/server.h"

int main(int argc, char** argv) {
  babai::ServerFlags flags;
  const int code = babai::ParseServerFlags(argc, argv, flags);
  return code >= 0 ? code : babai::RunServer(flags);
}
