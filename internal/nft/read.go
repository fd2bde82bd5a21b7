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
	exists   bool
	broken   bool // not to be repaired in place
	sets     map[string]setDef
	chains   map[string]actualChain
	edited   map[string]bool // chains of ours whose rules are not
	objects  map[object]expr.Counter
	parts    parts
	elements map[string]elements // nil if not asked for
	contents Contents            // nothing but Damage if not asked for
}

// object identifies a stateful object: the kernel keeps one name space a type.
type object struct {
	kind nftables.ObjType
	name string
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
		s, err := c.readSkeleton()
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
			return s, c.readElements(s)
		}
		return s, nil
	}
	return nil, errUnsettled
}

func (c *conn) readSkeleton() (*state, error) {
	s := &state{contents: newContents(), edited: map[string]bool{}}
	t, err := c.ListTableOfFamily(TableName, nftables.TableFamilyINet)
	if errors.Is(err, syscall.ENOENT) {
		return s, nil
	} else if err != nil {
		return nil, err
	}
	s.exists = true
	if t.Flags != 0 { // above all: dormant
		s.broken = true
		s.fault("the table has flags set")
	}
	if s.sets, err = c.readSets(); err != nil {
		return nil, err
	}
	if s.chains, err = c.readChains(); err != nil {
		return nil, err
	}
	if s.objects, err = c.readObjects(); err != nil {
		return nil, err
	}
	s.compare()
	return s, nil
}

// compare finds out what is not as the skeleton has it.
func (s *state) compare() {
	for name := range s.sets {
		if m, ok := parseSteerMap(name); ok {
			s.parts.maps = append(s.parts.maps, m)
		}
		s.parts.links = s.parts.links || name == setZones
	}
	for name := range s.chains {
		if m, ok := parseMarkChain(name); ok {
			s.parts.marks = append(s.parts.marks, m)
		}
		if z, ok := parseZoneChain(name); ok {
			s.parts.zones = append(s.parts.zones, z)
		}
	}
	want := newSkeleton(s.parts)
	for _, name := range sortedUnion(want.sets, s.sets) {
		w, wanted := want.sets[name]
		h, there := s.sets[name]
		if !wanted || !there {
			s.fault("set %s is %s", name, difference(wanted))
		} else if !h.same(w) {
			s.broken = true
			s.fault("set %s is of another type", name)
		}
	}
	for _, name := range sortedUnion(want.chains, s.chains) {
		w, wanted := want.chains[name]
		h, there := s.chains[name]
		switch {
		case !wanted || !there:
			s.fault("chain %s is %s", name, difference(wanted))
		case !h.sameHook(w):
			s.broken = true
			s.fault("chain %s has another hook or policy", name)
		case !slices.EqualFunc(w.rules, h.rules, sameRule):
			s.edited[name] = true
			s.fault("the rules of chain %s are changed", name)
		}
	}
	for o := range s.objects {
		if !o.ours() {
			s.fault("object %s is %s", o.name, difference(false))
		}
	}
	for _, name := range counterNames {
		if !s.counts(name) {
			s.fault("counter %s is %s", name, difference(true))
		}
	}
}

func (d setDef) same(w setDef) bool { return d.key.Bytes == w.key.Bytes && d.verdict == w.verdict }

// counts reports whether the table has a counter.
func (s *state) counts(name string) bool {
	_, ok := s.objects[object{nftables.ObjTypeCounter, name}]
	return ok
}

func (o object) ours() bool {
	return o.kind == nftables.ObjTypeCounter && slices.Contains(counterNames, o.name)
}

func difference(wanted bool) string {
	if wanted {
		return "missing"
	}
	return "not ours"
}

func sortedUnion[A, B any](a map[string]A, b map[string]B) []string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(names)
	return slices.Compact(names)
}

// readElements fills in the elements of sets that have the right definition.
func (c *conn) readElements(s *state) error {
	want := newSkeleton(s.parts)
	s.elements = map[string]elements{}
	for name, def := range s.sets {
		if w, ours := want.sets[name]; !ours || !def.same(w) {
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

func (c *conn) readObjects() (map[object]expr.Counter, error) {
	msgs, err := c.dump(unix.NFT_MSG_GETOBJ, unix.NFTA_OBJ_TABLE)
	if err != nil {
		return nil, err
	}
	objects := make(map[object]expr.Counter, len(msgs))
	for _, m := range msgs {
		var o object
		var data []byte
		err := attributes(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_OBJ_NAME:
				o.name = ad.String()
			case unix.NFTA_OBJ_TYPE:
				o.kind = nftables.ObjType(ad.Uint32())
			case unix.NFTA_OBJ_DATA:
				data = ad.Bytes()
			}
		})
		var counter expr.Counter
		if err == nil && o.kind == nftables.ObjTypeCounter {
			err = expr.Unmarshal(unix.NFPROTO_INET, data, &counter)
		}
		if err != nil {
			return nil, err
		}
		objects[o] = counter
	}
	return objects, nil
}
