package vrrp

// Reason says why a received message was discarded. It is an error, and its
// Counter is the name under which the discard is counted.
type Reason uint8

// The reasons. Those from TTL on are given by package ha, which knows the
// configuration; they are here so that every discard has one list of names.
const (
	Truncated    Reason = iota + 1 // RFC 9568 7.1: header or addresses incomplete
	Version                        // 7.1: not version 3
	Type                           // 5.2.2: not an ADVERTISEMENT
	Checksum                       // 7.1: neither form of the checksum matches
	CountZero                      // 5.2.5, erratum 8299: no address
	IntervalZero                   // 7.1, erratum 8301: Max Advertise Interval 0
	Family                         // source and destination are of different families
	AuthMissing                    // a trailer is required and there is none
	AuthKey                        // the trailer's key id is unknown
	AuthInvalid                    // the HMAC does not match
	AuthReplay                     // the sequence number was seen, or is below the window
	AuthStale                      // first contact, and the sequence is too far from our clock
	TTL                            // 5.1.1.3, 5.1.2.3: not 255, or outside the peer's limits
	VRID                           // 7.1: no virtual router of that id here
	UnknownPeer                    // unicast, and the sender is no peer
	Multicast                      // multicast destination, but the instance is unicast
	Unicast                        // unicast destination, but the instance is multicast
	OwnAddress                     // the source is our own address
	reasonsEnd
)

var counters = [reasonsEnd]string{
	Truncated: "truncated", Version: "version", Type: "type", Checksum: "checksum",
	CountZero: "count_zero", IntervalZero: "interval_zero", Family: "family",
	AuthMissing: "auth_missing", AuthKey: "auth_key", AuthInvalid: "auth_invalid",
	AuthReplay: "auth_replay", AuthStale: "auth_stale", TTL: "ttl", VRID: "vrid",
	UnknownPeer: "unknown_peer", Multicast: "multicast", Unicast: "unicast", OwnAddress: "own_address",
}

// Counter is the reason's name in metrics, in lower case with underscores.
func (r Reason) Counter() string {
	if r == 0 || r >= reasonsEnd {
		return "unknown"
	}
	return counters[r]
}

// Error implements error.
func (r Reason) Error() string { return "vrrp: discarded: " + r.Counter() }

// Reasons returns all reasons, so that every counter exists from the start.
func Reasons() []Reason {
	all := make([]Reason, 0, reasonsEnd-1)
	for r := Truncated; r < reasonsEnd; r++ {
		all = append(all, r)
	}
	return all
}
