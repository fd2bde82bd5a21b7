package ha

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// looking is a Transport that looks at its node's state whenever it sends.
type looking struct {
	*port
	node atomic.Pointer[Node]

	mu   sync.Mutex
	seen []State
}

func (l *looking) Send(dst netip.Addr, payload []byte) error {
	l.mu.Lock()
	l.seen = append(l.seen, l.node.Load().Status().State)
	l.mu.Unlock()
	return l.port.Send(dst, payload)
}

func (l *looking) states() []State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seen)
}

// Whoever is told of a change asks for the state, perhaps before the adverts that
// belong to it are sent: it must be the new one.
func TestStatusComesBeforeWhatIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *looking
		n := startNode(t, newWire(), lower, higher, 200, func(c *NodeConfig) {
			l = &looking{port: c.Transport.(*port)}
			c.Transport = l
		})
		l.node.Store(n.Node)
		time.Sleep(time.Second)
		if seen := l.states(); len(seen) < 2 || seen[0] != Active {
			t.Errorf("the first advert was sent in state %v", seen)
		}
		if err := n.Post(t.Context(), Drain{On: true}); err != nil {
			t.Fatal(err)
		}
		if seen := l.states(); seen[len(seen)-1] != Fault {
			t.Errorf("the role was resigned in state %v", seen)
		}
		n.end(t)
	})
}
