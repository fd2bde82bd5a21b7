// Package tunnel makes the objects of a tunnel true: network namespaces, the
// multipoint GRE devices and elastic network interfaces in them, addresses,
// neighbor entries and the list of peers who may speak GRE to this machine. Each
// is a [reconcile.Kind]; package owned says which ones are ours.
package tunnel
