// Package nat turns a namespace's wanted address translation and packet filter
// into a RuleSet, and keeps the kernel's rules equal to it. It knows no firewall
// program: a Backend reads and writes RuleSets (package nat/iptables).
//
// # What the rules do
//
// Four chains of ours hang at the top of the kernel's hooks. A chain exists only
// while it has rules, and foreign rules are never read for meaning, moved or
// changed. Links are given by name or pattern (see LinkPattern).
//
// POSTROUTING, first packet of a connection that leaves by a link (Postrouting):
// the first desired.SNAT whose Out matches decides. A source listed in its
// Except keeps its address, whatever rules of others follow; any other source
// becomes To, or the out link's primary address if To is zero (MASQUERADE).
// Source ports are chosen fully at random, because concurrent first packets
// otherwise race for the same port and lose (insert_failed). Later packets of
// the connection, both directions, and ICMP errors about it follow its conntrack
// entry and never see these rules; so replacing rules changes no connection that
// is there.
//
// FORWARD, packets passing through (Forward), in this order:
//
//  1. to or from a guarded link, of a known connection or related to one
//     (ESTABLISHED, RELATED: replies, ICMP errors such as "fragmentation
//     needed"): accepted if it comes from the guarded link, or goes to one that
//     connections may be opened to from everywhere (7);
//  2. from a guarded link, not understood by conntrack (INVALID): dropped;
//  3. toward a link with source NAT, INVALID or UNTRACKED: dropped, because NAT
//     leaves such packets alone and they would show an inner address;
//  4. toward a link with source NAT in the other address family only: dropped,
//     for the same reason;
//  5. from and to links that a desired.Forward names together: accepted;
//  6. from a guarded link, anything else: dropped;
//  7. toward a link that a desired.Forward with an empty In names: accepted. An
//     empty In means every link that is not guarded, so that two guarded links
//     (two tenants' tunnels) never reach each other through it;
//  8. all other packets go on to the rules of others.
//
// What is allowed is accepted, not merely passed on: hosts with Docker have a
// FORWARD policy of DROP. The reverse side: a rule of others that would refuse
// an allowed packet later in FORWARD is not asked.
//
// INPUT, packets from a guarded link to this machine itself (Input): known
// connections and what is related to them are accepted, all else is dropped.
// IPv6 neighbor discovery and multicast listener queries are let through:
// conntrack does not track them, and without them no IPv6 address works (RFC
// 4890 section 4.4.1). Router advertisements are not: our routes are static.
//
// FORWARD again, TCP SYN and SYN-ACK, which alone are passed to the chain (MSS): for a desired.Clamp the segment size
// announced through the link, in both directions, is lowered to what fits its
// MTU: MTU-40 with IPv4, MTU-60 with IPv6 (headers of 20 or 40 bytes, and 20 for
// TCP: RFC 9293 section 3.7.1). A size is set rather than derived from the path
// MTU, because the kernel looks up the reverse path without the packet's mark
// and would find another route; setting never raises a size that is already
// lower (net/netfilter/xt_TCPMSS.c). Toward the link, a path MTU that the kernel
// has learned counts too.
//
// Clamp, Forward and Guarded apply to IPv4 and IPv6, SNAT to the family of its
// addresses. Where the kernel has no IPv6 there is nothing to guard.
package nat
