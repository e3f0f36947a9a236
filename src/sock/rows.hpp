// What other processes may see of our sockets: rows of the region for `icepath ss`, gauges, and the count of fast bytes by which a peer
// judges whether we died in mid-stream (lane.cpp). Rows are refreshed on request (control mailbox), so the data path pays one store.
#pragma once
#include "sock/socket.hpp"

namespace icepath {

struct lane;

uint32_t row_alloc();                 // ~0: none left, or no region yet
void row_free(uint32_t row);
void row_promoted(socket* s);         // counts and clears the byte count
void row_demoted(socket* s);
void row_sent(socket* s, uint64_t fast_bytes);
bool row_peer_sent(const lane* l, uint64_t* bytes);   // how many fast bytes the (dead) peer had accepted from its application
void rows_refresh();                  // all rows from the live sockets; helper thread
void rows_forget();
void row_listening(socket* s);        // its row, while no helper thread fills the rows on request
void rows_count_connection();         // a TCP connection was made or accepted
void print_stats_line();              // ICEPATH_STATS

}  // namespace icepath
