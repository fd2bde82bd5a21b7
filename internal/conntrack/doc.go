// Package conntrack reads and writes the connection tracking table of a network
// namespace over netlink (ctnetlink, net/netfilter/nf_conntrack_netlink.c).
//
// It exists beside the known libraries because of one attribute: a flow whose
// source is translated goes on in another kernel only if its entry is created
// with CTA_NAT_SRC. The status bits alone, which others send, are ignored, and
// pin the flow untranslated.
//
// Requests are batched: one sendmsg carries hundreds of them, and only the last
// asks for an acknowledgement.
package conntrack
