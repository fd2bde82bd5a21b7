// Package vrrp is the wire format of VRRP version 3 advertisements (RFC 9568
// section 5), IPv4 and IPv6: encoding, decoding, both checksum forms that are
// found in the field, and an optional authentication trailer.
//
// It holds no socket, no state but the replay windows, and judges a message by
// itself alone: whether its sender, TTL or VRID are welcome is package ha's
// decision.
package vrrp
