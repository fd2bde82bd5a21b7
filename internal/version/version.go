// Package version says which release this is.
package version

// Version is set at link time (-ldflags "-X …/internal/version.Version=1.2.3").
var Version = "0.1.0-dev"
