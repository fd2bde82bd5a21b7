// Package iptables is the nat.Backend that programs iptables and ip6tables, in
// either of their variants: iptables-nft and iptables-legacy.
//
// # Transactions
//
// The rules of one table are replaced by one iptables-restore --noflush
// transaction, computed from what iptables-save has just printed: it declares
// our chains (which empties them within the transaction), fills them, and puts
// the jump in its place. The kernel switches from the old rules to the new ones
// at once, in both variants. A table that is as wanted is not written. If
// another program changed a rule in between that the transaction deletes, the
// whole transaction fails and the caller tries again.
//
// # Ownership
//
// Chains whose names begin with VPCPROXY- are ours, in all tables, and so is
// every rule anywhere that jumps into one. All other rules and chains, policies
// and counters stay as they are. What is ours in the variant that is not in use
// is removed: a host may have been switched.
//
// # The place of our jumps
//
// A jump is inserted as the first rule of its built-in chain. Others insert
// there too; a rule before ours matters only if it could decide about a packet
// that ours is for, which is judged by its target (followed through chains), its
// links, and its conntrack state. A jump that such a rule has shadowed is moved
// to the top again: at once, but if it does not stay, after pauses that double
// from one second to ten minutes, so that two programs which both want the top
// do not fight. Calico, with chainInsertMode Insert, is such a program. The pauses
// start over when the jump was left alone for twice the last pause and a minute.
//
// # Locking
//
// iptables-legacy serializes writers by /run/xtables.lock; we wait five seconds
// for it and then report ErrBusy, to be tried again. Where the agent runs in a
// container, /run/xtables.lock of the host must be mounted into it.
package iptables
