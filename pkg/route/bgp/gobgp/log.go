package gobgp

import (
	"context"
	"log/slog"

	"github.com/osrg/gobgp/v3/pkg/log"
)

// logger hands the library's log to ours. The library tells every step of every
// session; that is for debugging, and what an operator must know is said by
// whoever uses a Speaker.
type logger struct {
	log *slog.Logger
}

func (l *logger) write(level slog.Level, msg string, fields log.Fields) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	args := make([]any, 0, 2*len(fields))
	for k, v := range fields {
		args = append(args, k, v)
	}
	l.log.Log(context.Background(), level, "bgp: "+msg, args...)
}

// Panic and Fatal do not end the process: the library calls them for messages
// of a type that it does not know.
func (l *logger) Panic(msg string, fields log.Fields) { l.write(slog.LevelError, msg, fields) }
func (l *logger) Fatal(msg string, fields log.Fields) { l.write(slog.LevelError, msg, fields) }
func (l *logger) Error(msg string, fields log.Fields) { l.write(slog.LevelWarn, msg, fields) }
func (l *logger) Warn(msg string, fields log.Fields)  { l.write(slog.LevelDebug, msg, fields) }
func (l *logger) Info(msg string, fields log.Fields)  { l.write(slog.LevelDebug, msg, fields) }
func (l *logger) Debug(msg string, fields log.Fields) { l.write(slog.LevelDebug, msg, fields) }

// SetLevel does nothing: the level is that of the log written to.
func (l *logger) SetLevel(log.LogLevel) {}

func (l *logger) GetLevel() log.LogLevel {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		return log.DebugLevel
	}
	return log.InfoLevel
}

var _ log.Logger = (*logger)(nil)
