// Package route makes the way of packets true: routes, policy rules, the kernel
// parameters that forwarding needs, and the map that steers pods. Each is a
// [reconcile.Kind]. Routes and rules are ours by their protocol number.
package route
