package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// state is a table as the kernel has it.
type state struct {
	exists    bool
	broken    bool            // not to be repaired in place
	edited    map[string]bool // chains whose rules are not ours
	steerMaps []steerMap
	marks     []Mark
	elements  map[string]elements // nil if not asked for
	contents  Contents            // nothing but Damage if not asked for
	counters  map[string]expr.Counter
}

// fault notes the first thing that is wrong with the table.
func (s *state) fault(format string, args ...any) {
	if s.contents.Damage == "" {
		s.contents.Damage = fmt.Sprintf(format, args...)
	}
}

// rounds bounds how often the table is read anew because the ruleset of the
// namespace changed meanwhile. That takes half a millisecond, and other agents
// rewrite their tables every few seconds.
const rounds = 20

// errUnsettled is returned if the ruleset kept changing.
var errUnsettled = errors.New("the ruleset keeps changing while it is read")

// read reads the table; without its elements if they are not asked for.
//
// The lists of sets, chains and rules are taken as they are only if nobody
// committed anything meanwhile, to whatever table: the kernel continues a dump by
// counting objects, and may leave some out. The elements of a set are
// counted within the set: what others do elsewhere does not disturb them, and
// an element left out because somebody changed ours is merely written again.
func (c *conn) read(ctx context.Context, withElements bool) (*state, error) {
	for range rounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		before, err := c.generation()
		if err != nil {
			return nil, err
		}
		s, sets, err := c.readSkeleton()
		after, genErr := c.generation()
		if genErr != nil {
			return nil, genErr
		}
		switch {
		case before != after:
			continue
		case err != nil:
			return nil, err
		case withElements && s.exists:
			return s, c.readElements(s, sets)
		}
		return s, nil
	}
	return nil, errUnsettled
}

func (c *conn) readSkeleton() (*state, map[string]setDef, error) {
	s := &state{contents: newContents(), edited: map[string]bool{}}
	t, err := c.ListTableOfFamily(TableName, nftables.TableFamilyINet)
	if errors.Is(err, syscall.ENOENT) {
		return s, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	s.exists = true
	if t.Flags != 0 { // above all: dormant
		s.broken = true
		s.fault("the table has flags set")
	}
	sets, err := c.readSets()
	if err != nil {
		return nil, nil, err
	}
	chains, err := c.readChains()
	if err != nil {
		return nil, nil, err
	}
	if s.counters, err = c.counters(); err != nil {
		return nil, nil, err
	}
	s.compare(sets, chains)
	return s, sets, nil
}

// compare finds out what is not as the skeleton has it.
func (s *state) compare(sets map[string]setDef, chains map[string]actualChain) {
	for name := range sets {
		if m, ok := parseSteerMap(name); ok {
			s.steerMaps = append(s.steerMaps, m)
		}
	}
	for name := range chains {
		if m, ok := parseMarkChain(name); ok {
			s.marks = append(s.marks, m)
		}
	}
	want := newSkeleton(s.steerMaps, s.marks)
	for _, name := range sortedUnion(want.sets, sets) {
		w, wanted := want.sets[name]
		h, there := sets[name]
		if !wanted || !there || w.key.Bytes != h.key.Bytes || w.verdict != h.verdict {
			s.broken = true
			s.fault("set %s is %s", name, difference(wanted, there))
		}
	}
	for _, name := range sortedUnion(want.chains, chains) {
		w, wanted := want.chains[name]
		h, there := chains[name]
		switch {
		case !wanted || !there || !h.sameHook(w):
			s.broken = true
			s.fault("chain %s is %s", name, difference(wanted, there))
		case !slices.EqualFunc(w.rules, h.rules, sameRule):
			s.edited[name] = true
			s.fault("the rules of chain %s are changed", name)
		}
	}
	for _, name := range sortedUnion(s.counters, map[string]struct{}{CounterForged: {}, CounterUnknownPeer: {}}) {
		_, there := s.counters[name]
		if wanted := slices.Contains(counterNames, name); !there || !wanted {
			s.broken = true
			s.fault("counter %s is %s", name, difference(wanted, there))
		}
	}
}

func difference(wanted, there bool) string {
	switch {
	case !there:
		return "missing"
	case !wanted:
		return "not ours"
	}
	return "of another definition"
}

func sortedUnion[A, B any](a map[string]A, b map[string]B) []string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(names)
	return slices.Compact(names)
}

// readElements fills in the elements of sets that have the right definition.
func (c *conn) readElements(s *state, sets map[string]setDef) error {
	want := newSkeleton(s.steerMaps, s.marks)
	s.elements = map[string]elements{}
	for name, def := range sets {
		w, ok := want.sets[name]
		if !ok || w.key.Bytes != def.key.Bytes || w.verdict != def.verdict {
			continue
		}
		list, err := c.GetSetElements(&nftables.Set{Table: table(), Name: name})
		if err != nil {
			return fmt.Errorf("elements of set %s: %w", name, err)
		}
		elems := make(elements, len(list))
		for _, e := range list {
			chain := ""
			if def.verdict {
				if chain, err = jumpTarget(e.Val); err != nil {
					return fmt.Errorf("elements of map %s: %w", name, err)
				}
			}
			elems[string(e.Key)] = chain
		}
		s.elements[name] = elems
		if err := s.contents.decode(name, elems); err != nil {
			s.fault("%v", err)
		}
	}
	if s.contents.empty() {
		s.fault("the table holds nothing")
	}
	should := s.contents.elements()
	for _, name := range []string{setEndpoints, setRemotes} {
		if !maps.Equal(s.elements[name], should[name]) {
			s.fault("set %s does not agree with the peers", name)
		}
	}
	return nil
}

func (c *conn) readSets() (map[string]setDef, error) {
	msgs, err := c.dump(unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE)
	if err != nil {
		return nil, err
	}
	sets := make(map[string]setDef, len(msgs))
	for _, m := range msgs {
		var name string
		var def setDef
		var flags uint32
		err := attributes(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_SET_NAME:
				name = ad.String()
			case unix.NFTA_SET_FLAGS:
				flags = ad.Uint32()
			case unix.NFTA_SET_KEY_LEN:
				def.key.Bytes = ad.Uint32()
			case unix.NFTA_SET_DATA_TYPE:
				def.verdict = ad.Uint32() == unix.NFT_DATA_VERDICT
			}
		})
		if err != nil {
			return nil, err
		}
		if flags&^(unix.NFT_SET_MAP|nftables.NFT_SET_CONCAT) != 0 {
			def.key.Bytes = 0 // intervals, timeouts and the like: not ours
		}
		sets[name] = def
	}
	return sets, nil
}

// actualChain is a chain as the kernel has it.
type actualChain struct {
	*nftables.Chain
	rules [][]actualExpr
}

// actualExpr is an expression as the kernel has it.
type actualExpr struct {
	name string
	data []byte
}

func (c *conn) readChains() (map[string]actualChain, error) {
	list, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	chains := map[string]actualChain{}
	for _, ch := range list {
		if ch.Table.Name == TableName {
			chains[ch.Name] = actualChain{Chain: ch}
		}
	}
	// One dump of all rules; the library has one per chain only.
	msgs, err := c.dump(unix.NFT_MSG_GETRULE, unix.NFTA_RULE_TABLE)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		var name string
		var exprs []actualExpr
		var inner error
		err := attributes(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				name = ad.String()
			case unix.NFTA_RULE_EXPRESSIONS:
				exprs, inner = splitExprs(ad.Bytes())
			}
		})
		if err := errors.Join(err, inner); err != nil {
			return nil, err
		}
		ch := chains[name]
		ch.rules = append(ch.rules, exprs)
		chains[name] = ch
	}
	return chains, nil
}

// sameHook reports whether the chain hangs where it should, and lets pass what
// no rule decides.
func (a actualChain) sameHook(w chainDef) bool {
	if a.Chain == nil { // rules of a chain that was not listed
		return false
	}
	if w.hook == nil || a.Hooknum == nil {
		return w.hook == nil && a.Hooknum == nil
	}
	return *a.Hooknum == *w.hook && *a.Priority == *w.prio && a.Type == nftables.ChainTypeFilter &&
		a.Policy != nil && *a.Policy == nftables.ChainPolicyAccept
}

// counters returns all stateful objects of the table; those that are no
// counters go by names that no counter has.
func (c *conn) counters() (map[string]expr.Counter, error) {
	msgs, err := c.dump(unix.NFT_MSG_GETOBJ, unix.NFTA_OBJ_TABLE)
	if err != nil {
		return nil, err
	}
	counters := map[string]expr.Counter{}
	for _, m := range msgs {
		var name string
		var kind uint32
		var data []byte
		err := attributes(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_OBJ_NAME:
				name = ad.String()
			case unix.NFTA_OBJ_TYPE:
				kind = ad.Uint32()
			case unix.NFTA_OBJ_DATA:
				data = ad.Bytes()
			}
		})
		var counter expr.Counter
		if kind != unix.NFT_OBJECT_COUNTER {
			name = fmt.Sprintf("%s (an object of type %d)", name, kind)
		} else if err == nil {
			err = expr.Unmarshal(unix.NFPROTO_INET, data, &counter)
		}
		if err != nil {
			return nil, err
		}
		counters[name] = counter
	}
	return counters, nil
}
