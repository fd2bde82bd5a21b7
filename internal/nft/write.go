package nft

import (
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// transaction turns what a table holds into what it should.
type transaction struct {
	have    *state
	want    Contents
	addOnly bool // keep all that is there; have.elements is unknown
}

// chunk is the number of elements in one message: the attribute that holds them
// has a length of 16 bits, and a key of two IPv6 addresses with a verdict takes 100 bytes.
// 1,000 would overflow for such.
const chunk = 500

// commit makes the change in one batch.
func (c *conn) commit(tx transaction) error {
	switch {
	case !tx.addOnly && tx.want.empty():
		if !tx.have.exists {
			return nil
		}
		c.DelTable(table())
	case !tx.have.exists || tx.have.broken:
		if err := c.rebuild(tx); err != nil {
			return err
		}
	default:
		if err := c.edit(tx); err != nil {
			return err
		}
	}
	return c.Flush()
}

// rebuild makes the whole table anew.
func (c *conn) rebuild(tx transaction) error {
	if tx.have.exists {
		c.DelTable(table())
	}
	c.AddTable(table())
	c.addCounters(counterNames, tx.have.objects)
	elems := tx.want.elements()
	sk := newSkeleton(tx.want.parts())
	if err := c.addSets(sk, slices.Collect(maps.Keys(sk.sets))); err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(sk.chains))
	c.addChains(sk, names)
	c.addRules(sk, names)
	return c.addElements(elems, nil)
}

// edit changes a table in place. What refers to something is made after it, and
// goes before it.
func (c *conn) edit(tx transaction) error {
	have, elems := tx.have, tx.want.elements()
	needed := tx.want.parts()
	if tx.addOnly {
		needed = have.parts.union(needed)
	}
	want := newSkeleton(needed)

	if replaces(have.elements, elems) {
		if err := c.addTargets(want, have); err != nil {
			return err
		}
	}
	if err := c.addBases(want, have); err != nil {
		return err
	}
	c.addCounters(slices.DeleteFunc(slices.Clone(counterNames), have.counts), nil)
	newSets, newChains := missing(have.sets, want.sets), missing(have.chains, want.chains)
	if err := c.addSets(want, newSets); err != nil {
		return err
	}
	oldSets, oldChains := missing(want.sets, have.sets), missing(want.chains, have.chains)
	c.addChains(want, newChains)
	rewrite := slices.Collect(maps.Keys(have.edited))
	if len(newSets)+len(oldSets) > 0 && !have.edited[chainPrerouting] && !slices.Contains(newChains, chainPrerouting) {
		rewrite = append(rewrite, chainPrerouting)
	}
	c.flushChains(oldChains)
	c.flushChains(rewrite)
	c.addRules(want, newChains)
	c.addRules(want, rewrite)

	if err := c.deleteElements(have.elements, elems); err != nil {
		return err
	}
	if err := c.addElements(elems, have.elements); err != nil {
		return err
	}
	for _, name := range oldSets {
		c.DelSet(&nftables.Set{Table: table(), Name: name})
	}
	for _, name := range oldChains {
		c.DelChain(&nftables.Chain{Table: table(), Name: name})
	}
	for o := range have.objects {
		if !o.ours() {
			c.DeleteObject(&nftables.NamedObj{Table: table(), Name: o.name, Type: o.kind})
		}
	}
	return nil
}

// addTargets adds mark and zone chains in a transaction before that of the elements. A
// packet that began its way through the rules before a commit sees the chains
// as they were, but the elements as they are: a chain that came with its element
// would be empty to it, and the packet unmarked.
func (c *conn) addTargets(want skeleton, have *state) error {
	for _, name := range missing(have.chains, want.chains) {
		_, marks := parseMarkChain(name)
		if _, zones := parseZoneChain(name); marks || zones {
			c.addChains(want, []string{name})
			c.addRules(want, []string{name})
			have.chains[name] = actualChain{}
		}
	}
	return c.Flush()
}

// addBases adds missing base chains in a transaction before that in which base
// chains of another layout go, as an older agent's: the kernel takes those off
// their hooks at once, and a packet that has passed the hook of a chain whose rules
// come with the same commit would meet neither.
func (c *conn) addBases(want skeleton, have *state) error {
	based := func(name string) bool { return have.chains[name].Chain != nil && have.chains[name].Hooknum != nil }
	if !slices.ContainsFunc(missing(want.chains, have.chains), based) {
		return nil
	}
	sets, chains := missing(have.sets, want.sets), missing(have.chains, want.chains)
	if err := c.addSets(want, sets); err != nil {
		return err
	}
	c.addChains(want, chains)
	c.addRules(want, chains)
	for _, name := range sets {
		have.sets[name] = want.sets[name]
	}
	for _, name := range chains {
		have.chains[name] = actualChain{}
	}
	return c.Flush()
}

// replaces reports whether an element that is there gets another target.
func replaces(have, want map[string]elements) bool {
	for set, elems := range have {
		for key, chain := range elems {
			if w, ok := want[set][key]; ok && w != chain {
				return true
			}
		}
	}
	return false
}

// parts returns what the contents need.
func (c Contents) parts() parts {
	steerMaps, marks, zones := map[steerMap]struct{}{}, map[Mark]struct{}{}, map[uint16]struct{}{}
	for match, mark := range c.Steers {
		steerMaps[match.steerMap()] = struct{}{}
		marks[mark] = struct{}{}
	}
	for _, zone := range c.Zones {
		zones[zone] = struct{}{}
	}
	return parts{
		maps: slices.Collect(maps.Keys(steerMaps)), marks: slices.Collect(maps.Keys(marks)),
		zones: slices.Collect(maps.Keys(zones)), links: len(zones) > 0,
	}
}

func (p parts) union(q parts) parts {
	return parts{maps: union(p.maps, q.maps), marks: union(p.marks, q.marks), zones: union(p.zones, q.zones), links: p.links || q.links}
}

func union[T comparable](a, b []T) []T {
	all := slices.Clone(a)
	for _, v := range b {
		if !slices.Contains(a, v) {
			all = append(all, v)
		}
	}
	return all
}

// missing returns the names that b has and a has not, sorted.
func missing[A, B any](a map[string]A, b map[string]B) []string {
	var names []string
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// addCounters adds counters with the values they had.
func (c *conn) addCounters(names []string, had map[object]expr.Counter) {
	for _, name := range names {
		value := had[object{nftables.ObjTypeCounter, name}]
		c.AddObj(&nftables.CounterObj{Table: table(), Name: name, Bytes: value.Bytes, Packets: value.Packets})
	}
}

func (c *conn) flushChains(names []string) {
	for _, name := range names {
		c.FlushChain(&nftables.Chain{Table: table(), Name: name})
	}
}

func (c *conn) addSets(sk skeleton, names []string) error {
	for _, name := range names {
		def := sk.sets[name]
		set := &nftables.Set{Table: table(), Name: name, KeyType: def.key, Concatenation: def.concatenated()}
		if def.verdict {
			set.IsMap, set.DataType = true, nftables.TypeVerdict
		}
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) addChains(sk skeleton, names []string) {
	accept := nftables.ChainPolicyAccept
	for _, name := range names {
		def := sk.chains[name]
		ch := &nftables.Chain{Table: table(), Name: name}
		if def.hook != nil {
			ch.Hooknum, ch.Priority, ch.Type, ch.Policy = def.hook, def.prio, nftables.ChainTypeFilter, &accept
		}
		c.AddChain(ch)
	}
}

func (c *conn) addRules(sk skeleton, chains []string) {
	for _, name := range chains {
		for _, r := range sk.chains[name].rules {
			c.AddRule(&nftables.Rule{Table: table(), Chain: &nftables.Chain{Name: name}, Exprs: []expr.Any(r)})
		}
	}
}

// deleteElements deletes what is there and not wanted, or wanted otherwise.
func (c *conn) deleteElements(have, want map[string]elements) error {
	for set, elems := range have {
		var old []nftables.SetElement
		for key, chain := range elems {
			if w, ok := want[set][key]; !ok || w != chain {
				old = append(old, element(key, chain))
			}
		}
		for part := range slices.Chunk(old, chunk) {
			if err := c.SetDeleteElements(&nftables.Set{Table: table(), Name: set}, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// addElements adds what is wanted and not there, or there otherwise.
func (c *conn) addElements(want, have map[string]elements) error {
	for set, elems := range want {
		var added []nftables.SetElement
		for key, chain := range elems {
			if h, ok := have[set][key]; !ok || h != chain {
				added = append(added, element(key, chain))
			}
		}
		for part := range slices.Chunk(added, chunk) {
			if err := c.SetAddElements(&nftables.Set{Table: table(), Name: set}, part); err != nil {
				return err
			}
		}
	}
	return nil
}
