package nat

import (
	"errors"
	"fmt"
	"strings"
)

// LinkPattern is a link's name, or its beginning followed by "+". "" stands for
// every link, as does "+".
type LinkPattern string

// Overlaps says whether some link can match both patterns.
func (p LinkPattern) Overlaps(q LinkPattern) bool {
	pre, wild := p.split()
	qre, qwild := q.split()
	switch {
	case wild && qwild:
		return strings.HasPrefix(pre, qre) || strings.HasPrefix(qre, pre)
	case wild:
		return strings.HasPrefix(qre, pre)
	case qwild:
		return strings.HasPrefix(pre, qre)
	}
	return pre == qre
}

// Covers says whether every link that matches q matches p.
func (p LinkPattern) Covers(q LinkPattern) bool {
	pre, wild := p.split()
	qre, qwild := q.split()
	if wild {
		return strings.HasPrefix(qre, pre)
	}
	return !qwild && pre == qre
}

func (p LinkPattern) split() (prefix string, wild bool) {
	if p == "" {
		return "", true
	}
	s, wild := strings.CutSuffix(string(p), "+")
	return s, wild
}

// maxLinkName is IFNAMSIZ less the terminating zero (include/uapi/linux/if.h).
const maxLinkName = 15

func (p LinkPattern) check() error {
	if p == "" {
		return nil
	}
	name, wild := p.split()
	if name == "" && wild {
		return nil
	}
	if len(p) > maxLinkName {
		return fmt.Errorf("link %q: longer than %d characters", string(p), maxLinkName)
	}
	for _, c := range name {
		if !strings.ContainsRune(linkChars, c) {
			return fmt.Errorf("link %q: the character %q cannot stand in a rule", string(p), c)
		}
	}
	if name[0] == '-' {
		return errors.New("a link in a rule must not begin with a hyphen: " + string(p))
	}
	return nil
}

// linkChars is what a link's name may consist of to stand in a rule. The kernel
// allows more, but quotes, "!" and spaces mean something to iptables-restore.
const linkChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@:"
