package kernel

import (
	"context"
	"fmt"
	"io"
)

func (h *host) Keep(ctx context.Context, name string, open func() (io.Closer, error)) (<-chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	handle, err := h.in(name)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var kept io.Closer
	err = handle.visit(func() (err error) {
		kept, err = open()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: %w", name, classify(err))
	}
	ctx, _, release := h.register(ctx, name)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-ctx.Done()
		_ = kept.Close() // nobody is left to be told
		release()
	}()
	return closed, nil
}
