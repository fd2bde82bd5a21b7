package nft

// Remembered is what was last read of a namespace, not a copy.
func (ts *Tables) Remembered(netns string) Contents { return ts.loaded.Last(netns) }
