// Package bgp says which paths a node announces and which it has heard of: VPN
// routes (RFC 4364, RFC 4659) whose tunnel encapsulation attribute (RFC 9012)
// names GRE and its key. It is the product's view of BGP; package gobgp speaks
// the protocol.
package bgp
