package node

import (
	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// Commands prints a planned change as the commands that an operator would type
// for the same effect.
func Commands(c reconcile.Change) []string {
	value := c.Want
	if value == nil {
		value = c.Have
	}
	op := desired.Op(c.Op.String())
	switch k := c.Key.(type) {
	case string:
		return desired.NamespaceKey(k).Commands(op, desired.Namespace{})
	case desired.NATKey:
		set, _ := value.(nat.RuleSet)
		commands := set.Commands()
		if op == desired.Delete {
			commands = set.RemoveCommands()
		}
		for i, line := range commands {
			commands[i] = desired.InNetns(k.Netns, line)
		}
		return commands
	case desired.PeerKey:
		return commands(k, op, value)
	case desired.LinkKey:
		return commands(k, op, value)
	case desired.ENIKey:
		return commands(k, op, value)
	case desired.EgressKey:
		return commands(k, op, value)
	case desired.AddressKey:
		return commands(k, op, value)
	case desired.NeighborKey:
		return commands(k, op, value)
	case desired.SysctlKey:
		return commands(k, op, value)
	case desired.NexthopKey:
		return commands(k, op, value)
	case desired.PathKey:
		return commands(k, op, value)
	case desired.RouteKey:
		return commands(k, op, value)
	case desired.RuleKey:
		return commands(k, op, value)
	case desired.SteerKey:
		return commands(k, op, value)
	}
	return nil
}

func commands[K desired.Commander[V], V any](k K, op desired.Op, value any) []string {
	v, _ := value.(V)
	return k.Commands(op, v)
}
