package vrrp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// The trailer's layout; docs/vrrp-authentication.md draws it.
const (
	trailerMagic = "VPA1"
	trailerHead  = 16 // magic, key id, reserved, sequence
	trailerLen   = trailerHead + sha256.Size
	// context separates this use of a key from any other.
	context = "vpcproxy vrrp advertisement 1"
	// MinKeyLen is the shortest key, in bytes, that is accepted: half of the
	// hash, as RFC 2104 section 3 advises no less.
	MinKeyLen = 16
	// replayWindow is how far, in adverts, a sequence may lag behind the
	// highest one seen and still be taken: adverts overtake each other.
	replayWindow = 64
)

// Keys are the shared secrets of an instance by key id.
type Keys map[uint8][]byte

func (k Keys) check() error {
	for id, key := range k {
		if len(key) < MinKeyLen {
			return fmt.Errorf("vrrp: key %d has %d bytes: use %d or more from a random source", id, len(key), MinKeyLen)
		}
	}
	return nil
}

// keepUp is how far a sender's sequence may fall behind its clock: little
// against VerifierConfig.Freshness, and so much that adverts which overtake each
// other are nearly always neighbors, which the replay window has room for.
const keepUp = 10 * time.Second

// Sealer appends trailers. Not safe for concurrent use.
type Sealer struct {
	id   uint8
	key  []byte
	now  func() time.Time
	next uint64
}

// NewSealer returns a sealer that uses keys[id]. Its sequences begin at SequenceAt
// the time, count adverts, and keep up with the clock, so that a receiver which starts
// later finds them fresh; they never go back while the sealer lives. now is the wall
// clock; nil is time.Now.
func NewSealer(keys Keys, id uint8, now func() time.Time) (*Sealer, error) {
	if err := keys.check(); err != nil {
		return nil, err
	}
	key, ok := keys[id]
	if !ok {
		return nil, fmt.Errorf("vrrp: no key with id %d to send with: add it to the keys", id)
	}
	if now == nil {
		now = time.Now
	}
	return &Sealer{id: id, key: key, now: now}, nil
}

// SequenceAt is the sequence that belongs to a time: microseconds since 1970. It
// grows faster than a sender counts, which sends less often than that: a sender
// that restarts begins above where it was, unless its clock has been set back.
func SequenceAt(t time.Time) uint64 { return uint64(max(t.UnixMicro(), 1)) }

// sequence returns the next one.
func (s *Sealer) sequence() uint64 {
	s.next++
	if at := SequenceAt(s.now()); s.next == 1 || at > s.next+uint64(keepUp.Microseconds()) {
		s.next = at
	}
	return s.next
}

// seal appends the trailer to the message that begins at b[start] and whose
// checksum field is zero.
func (s *Sealer) seal(b []byte, start int, src, dst netip.Addr) []byte {
	b = append(b, trailerMagic...)
	b = append(b, s.id, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, s.sequence())
	return append(b, mac(s.key, b[start:], src, dst)...)
}

// mac is over the addresses, too: a recorded advert is worth nothing when it is
// sent from, or to, elsewhere.
func mac(key, message []byte, src, dst netip.Addr) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(context))
	s, d := src.As16(), dst.As16()
	h.Write(s[:])
	h.Write(d[:])
	h.Write(message[:checksumOffset])
	h.Write([]byte{0, 0})
	h.Write(message[checksumOffset+2:])
	return h.Sum(nil)
}

// VerifierConfig describes a Verifier.
type VerifierConfig struct {
	Keys Keys
	// Optional accepts messages without a trailer, for the time in which keys
	// are rolled out. A trailer that is there must be right.
	Optional bool
	// Freshness bounds, on first contact with a sender, how far its sequence
	// may be from our clock, so that a recording is no first contact. Zero
	// turns it off. Clocks must then agree within it; see
	// docs/vrrp-authentication.md for what happens when one is stepped.
	Freshness time.Duration
	// Now is the wall clock; nil is time.Now. Used for Freshness only.
	Now func() time.Time
}

// Verifier checks trailers and remembers, by sender and key, which sequences
// were seen. Not safe for concurrent use. It remembers authenticated senders
// only, so its size is bounded by who holds a key.
type Verifier struct {
	cfg  VerifierConfig
	seen map[origin]*window
}

type origin struct {
	src netip.Addr
	key uint8
}

// NewVerifier returns a Verifier. It fails on a key that is too short.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	if err := cfg.Keys.check(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Verifier{cfg: cfg, seen: map[origin]*window{}}, nil
}

// verify checks what follows the addresses, which end at end.
func (v *Verifier) verify(b []byte, end int, src, dst netip.Addr) (seq uint64, authenticated bool, err error) {
	trailer := b[end:]
	if len(trailer) != trailerLen || string(trailer[:len(trailerMagic)]) != trailerMagic {
		if v.cfg.Optional && len(trailer) == 0 {
			return 0, false, nil
		}
		return 0, false, AuthMissing
	}
	id := trailer[len(trailerMagic)]
	key, ok := v.cfg.Keys[id]
	if !ok {
		return 0, false, AuthKey
	}
	if !hmac.Equal(trailer[trailerHead:], mac(key, b[:end+trailerHead], src, dst)) {
		return 0, false, AuthInvalid
	}
	seq = binary.BigEndian.Uint64(trailer[8:])
	w, known := v.seen[origin{src, id}]
	if !known {
		if !v.fresh(seq) {
			return 0, false, AuthStale
		}
		w = &window{}
		v.seen[origin{src, id}] = w
	}
	if !w.take(seq) {
		return 0, false, AuthReplay
	}
	return seq, true, nil
}

func (v *Verifier) fresh(seq uint64) bool {
	if v.cfg.Freshness == 0 {
		return true
	}
	now, limit := SequenceAt(v.cfg.Now()), uint64(v.cfg.Freshness.Microseconds())
	return max(now, seq)-min(now, seq) <= limit
}

// window is the sliding window of RFC 4303 section 3.4.3.
type window struct {
	highest uint64
	bits    uint64 // bit i: highest-i was seen
}

// take reports whether seq is new, and remembers it.
func (w *window) take(seq uint64) bool {
	if w.bits == 0 || seq > w.highest {
		shift := seq - w.highest
		if w.bits == 0 || shift >= replayWindow {
			w.bits = 0
		} else {
			w.bits <<= shift
		}
		w.highest, w.bits = seq, w.bits|1
		return true
	}
	behind := w.highest - seq
	if behind >= replayWindow || w.bits>>behind&1 == 1 {
		return false
	}
	w.bits |= 1 << behind
	return true
}
