// Package session keeps a standby proxy's kernel ready to go on with the
// connections of the active one: conntrack entries of each attachment's namespace,
// with their address translation, stream from the active member of a group to
// the others.
//
// What is replicated are flows that the kernel calls assured (TCP that is
// established, UDP that has been answered for two seconds) and that still are
// after Options.Age. A short connection thus costs one event and one look-up, and a
// standby nothing; with an event for each packet of its handshake the rate of new
// connections would be halved.
//
// The parts:
//
//	table    flows of a namespace, ordered by change        both sides
//	source   kernel → table: events, look-ups, listings     active
//	server   table → connection                             active
//	dialer   connection → table and kernel                  standby
//	sink     table → kernel: repair                         standby
//
// A member that becomes active takes the table over as it is, under a new
// epoch. One that ceases to be active keeps its table and its kernel's entries
// until the new active member has sent a whole copy; then what that does not have
// is removed.
package session
