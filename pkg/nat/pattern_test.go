package nat

import "testing"

func TestLinkPattern(t *testing.T) {
	for _, c := range []struct {
		p, q             LinkPattern
		overlaps, covers bool
	}{
		{"eth1", "eth1", true, true},
		{"eth1", "eth10", false, false},
		{"eth+", "eth10", true, true},
		{"eth10", "eth+", true, false},
		{"eth+", "e+", true, false},
		{"e+", "eth+", true, true},
		{"vpx-+", "eth+", false, false},
		{"", "eth1", true, true},
		{"+", "eth+", true, true},
		{"eth1", "", true, false},
		{"", "", true, true},
	} {
		if got := c.p.Overlaps(c.q); got != c.overlaps {
			t.Errorf("%q.Overlaps(%q) = %t", c.p, c.q, got)
		}
		if got := c.q.Overlaps(c.p); got != c.overlaps {
			t.Errorf("%q.Overlaps(%q) = %t", c.q, c.p, got)
		}
		if got := c.p.Covers(c.q); got != c.covers {
			t.Errorf("%q.Covers(%q) = %t", c.p, c.q, got)
		}
	}
}
