package vrrp

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

var testKeys = Keys{1: []byte("0123456789abcdef"), 2: []byte("fedcba9876543210")}

// at is a clock that stands at the time of a sequence.
func at(sequence uint64) func() time.Time {
	return func() time.Time { return time.UnixMicro(int64(sequence)) }
}

func sealer(t *testing.T, keys Keys, id uint8, first uint64) *Sealer {
	t.Helper()
	s, err := NewSealer(keys, id, at(first))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func verifier(t *testing.T, cfg VerifierConfig) *Verifier {
	t.Helper()
	v, err := NewVerifier(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAuthenticatedAdvertIsAccepted(t *testing.T) {
	for _, id := range []uint8{1, 2} {
		s, v := sealer(t, testKeys, id, 1000), verifier(t, VerifierConfig{Keys: testKeys})
		for i := range 3 {
			p, err := Parse(encode(t, sample4, src4, dst4, RFC9568, s), src4, dst4, v)
			if err != nil || !p.Authenticated || p.Sequence != 1000+uint64(i) {
				t.Errorf("key %d, advert %d: authenticated %v, sequence %d, error %v", id, i, p.Authenticated, p.Sequence, err)
			}
		}
	}
}

// forge changes a byte and makes the checksum, which needs no key, right again.
func forge(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 1
	sum := checksum(b, src4, dst4, RFC9568)
	b[checksumOffset], b[checksumOffset+1] = byte(sum>>8), byte(sum)
	return b
}

func TestForgedAdvertIsDiscarded(t *testing.T) {
	good := encode(t, sample4, src4, dst4, RFC9568, sealer(t, testKeys, 1, 1000))
	trailer := func(offset int) int { return headerLen + ipv4Len + offset }
	for _, c := range []struct {
		name string
		b    []byte
		want Reason
	}{
		{"other VRID", forge(good, 1), AuthInvalid},
		{"other priority", forge(good, 2), AuthInvalid},
		{"other interval", forge(good, 5), AuthInvalid},
		{"other address", forge(good, headerLen), AuthInvalid},
		{"other reserved byte", forge(good, trailer(5)), AuthInvalid},
		{"other sequence", forge(good, trailer(15)), AuthInvalid},
		{"other HMAC", forge(good, trailer(trailerLen-1)), AuthInvalid},
		{"no such magic", forge(good, trailer(0)), AuthMissing},
		{"unknown key", encode(t, sample4, src4, dst4, RFC9568, sealer(t, Keys{9: testKeys[1]}, 9, 1)), AuthKey},
		{"the right id of another key", encode(t, sample4, src4, dst4, RFC9568, sealer(t, Keys{1: testKeys[2]}, 1, 1)), AuthInvalid},
		{"no trailer", encode(t, sample4, src4, dst4, RFC9568, nil), AuthMissing},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(c.b, src4, dst4, verifier(t, VerifierConfig{Keys: testKeys}))
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	t.Run("from another source", func(t *testing.T) {
		if _, err := Parse(good, addr("192.168.4.9"), dst4, verifier(t, VerifierConfig{Keys: testKeys})); !errors.Is(err, AuthInvalid) {
			t.Errorf("%v, want %v", err, AuthInvalid)
		}
	})
	t.Run("to another destination", func(t *testing.T) {
		if _, err := Parse(good, src4, GroupIPv4, verifier(t, VerifierConfig{Keys: testKeys})); !errors.Is(err, AuthInvalid) {
			t.Errorf("%v, want %v", err, AuthInvalid)
		}
	})
}

func TestKeyRollOut(t *testing.T) {
	plain := encode(t, sample4, src4, dst4, RFC9568, nil)
	sealed := encode(t, sample4, src4, dst4, RFC9568, sealer(t, testKeys, 1, 1))
	optional := func() *Verifier { return verifier(t, VerifierConfig{Keys: testKeys, Optional: true}) }
	for _, c := range []struct {
		name          string
		b             []byte
		v             *Verifier
		authenticated bool
		want          error
	}{
		{"not verifying, sealed", sealed, nil, false, nil},
		{"optional, plain", plain, optional(), false, nil},
		{"optional, sealed", sealed, optional(), true, nil},
		{"optional, forged", forge(sealed, 2), optional(), false, AuthInvalid},
		{"optional, cut short", forge(sealed[:len(sealed)-1], 2), optional(), false, AuthMissing},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Parse(c.b, src4, dst4, c.v)
			if !errors.Is(err, c.want) || p.Authenticated != c.authenticated {
				t.Errorf("authenticated %v, error %v; want %v, %v", p.Authenticated, err, c.authenticated, c.want)
			}
		})
	}
}

func TestReplayWindow(t *testing.T) {
	v := verifier(t, VerifierConfig{Keys: testKeys})
	for _, c := range []struct {
		seq  uint64
		want error
		why  string
	}{
		{1000, nil, "first"},
		{1000, AuthReplay, "again"},
		{1002, nil, "newer"},
		{1001, nil, "overtaken, but new"},
		{1001, AuthReplay, "overtaken, again"},
		{1002 + replayWindow - 1, nil, "the window moves"},
		{1002, AuthReplay, "the oldest in the window, seen"},
		{1003, nil, "in the window, new"},
		{1001, AuthReplay, "below the window"},
		{1 << 40, nil, "far ahead"},
		{1003, AuthReplay, "far behind"},
		{1<<40 - 1, nil, "in the new window"},
	} {
		b := encode(t, sample4, src4, dst4, RFC9568, sealer(t, testKeys, 1, c.seq))
		if _, err := Parse(b, src4, dst4, v); !errors.Is(err, c.want) {
			t.Errorf("%s: sequence %d: %v, want %v", c.why, c.seq, err, c.want)
		}
	}
	other := encode(t, sample4, dst4, src4, RFC9568, sealer(t, testKeys, 1, 5))
	if _, err := Parse(other, dst4, src4, v); err != nil {
		t.Errorf("another sender counts for itself: %v", err)
	}
}

// A forged message must not move the window, or it would shut the sender out.
func TestForgedSequenceMovesNoWindow(t *testing.T) {
	v := verifier(t, VerifierConfig{Keys: testKeys})
	for i, c := range []struct {
		key  Keys
		seq  uint64
		want error
	}{
		{testKeys, 10, nil},
		{Keys{1: testKeys[2]}, 1 << 50, AuthInvalid},
		{testKeys, 11, nil},
	} {
		b := encode(t, sample4, src4, dst4, RFC9568, sealer(t, c.key, 1, c.seq))
		if _, err := Parse(b, src4, dst4, v); !errors.Is(err, c.want) {
			t.Errorf("advert %d: %v, want %v", i, err, c.want)
		}
	}
}

func TestFreshnessIsAskedOnFirstContactOnly(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	v := verifier(t, VerifierConfig{Keys: testKeys, Freshness: time.Minute, Now: func() time.Time { return now }})
	try := func(when time.Time, want error) {
		t.Helper()
		b := encode(t, sample4, src4, dst4, RFC9568, sealer(t, testKeys, 1, SequenceAt(when)))
		if _, err := Parse(b, src4, dst4, v); !errors.Is(err, want) {
			t.Errorf("sequence of %v: %v, want %v", when, err, want)
		}
	}
	try(now.Add(-time.Hour), AuthStale)
	try(now.Add(time.Hour), AuthStale)
	try(now.Add(-59*time.Second), nil)
	now = now.Add(time.Hour) // our clock is stepped
	try(now.Add(-time.Hour), nil)
}

// A receiver may start any time after a sender, and find its adverts fresh.
func TestSequencesKeepUpWithTheClock(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	s, err := NewSealer(testKeys, 1, clock)
	if err != nil {
		t.Fatal(err)
	}
	running := verifier(t, VerifierConfig{Keys: testKeys, Freshness: time.Minute, Now: clock})
	var last uint64
	send := func(why string) {
		t.Helper()
		b := encode(t, sample4, src4, dst4, RFC9568, s)
		p, err := Parse(b, src4, dst4, running)
		if err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		if p.Sequence <= last {
			t.Fatalf("%s: sequence %d after %d", why, p.Sequence, last)
		}
		last = p.Sequence
		if want := SequenceAt(now); last < want-uint64(keepUp.Microseconds()) {
			t.Fatalf("%s: sequence %d is %d µs behind the clock", why, last, want-last)
		}
	}
	for range 3000 { // five minutes
		send("time goes on")
		now = now.Add(100 * time.Millisecond)
	}
	started := verifier(t, VerifierConfig{Keys: testKeys, Freshness: time.Minute, Now: clock})
	if _, err := Parse(encode(t, sample4, src4, dst4, RFC9568, s), src4, dst4, started); err != nil {
		t.Errorf("who has just started: %v", err)
	}
	// The clock is stepped: who knows the sender does not notice.
	for _, step := range []time.Duration{time.Hour, -2 * time.Hour, time.Hour} {
		now = now.Add(step)
		send("a step of " + step.String())
		send("after a step of " + step.String())
	}
}

func TestKeysAreChecked(t *testing.T) {
	if _, err := NewVerifier(VerifierConfig{Keys: Keys{3: []byte("short")}}); err == nil || !strings.Contains(err.Error(), "key 3 has 5 bytes") {
		t.Errorf("error %v", err)
	}
	if _, err := NewSealer(testKeys, 7, nil); err == nil || !strings.Contains(err.Error(), "id 7") {
		t.Errorf("error %v", err)
	}
}
