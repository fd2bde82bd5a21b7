// Package ha elects one active node among several with VRRP version 3 (RFC 9568).
//
// Machine is the protocol: pure, time and events in, actions out. Receiver
// judges packets before the machine hears of them. Node runs both on sockets
// and timers and tells a Mover, which holds the addresses, what to do.
//
// docs/rfc9568.md lists the rules of the RFC, where each is kept, the tests that
// show it, and what is done differently.
package ha
