package store

import (
	"context"
	"log/slog"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// core hands etcd's log to slog: its warnings and errors as they are, the rest,
// which is much, as debug.
type core struct {
	log    *slog.Logger
	fields []zapcore.Field
	hushed *atomic.Bool
}

var _ zapcore.Core = (*core)(nil)

func newCore(log *slog.Logger) *core {
	return &core{log: log.With("component", "etcd"), hushed: new(atomic.Bool)}
}

// quiet makes everything debug, or not.
func (c *core) quiet(yes bool) { c.hushed.Store(yes) }

func (c *core) level(l zapcore.Level) slog.Level {
	switch {
	case c.hushed.Load() || l < zapcore.WarnLevel:
		return slog.LevelDebug
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}

// Enabled implements zapcore.LevelEnabler.
func (c *core) Enabled(l zapcore.Level) bool {
	return c.log.Enabled(context.Background(), c.level(l))
}

// With implements zapcore.Core.
func (c *core) With(f []zapcore.Field) zapcore.Core {
	d := *c
	d.fields = append(append([]zapcore.Field(nil), c.fields...), f...)
	return &d
}

// Check implements zapcore.Core.
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(append([]zapcore.Field(nil), c.fields...), fields...) {
		f.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	c.log.LogAttrs(context.Background(), c.level(e.Level), e.Message, attrs...)
	return nil
}

// Sync implements zapcore.Core.
func (*core) Sync() error { return nil }
