# A driver of a virtio console that sends 1.5 GiB in one chain, all of it the same 96 MiB.
.include "virtio.inc"
.code32
.text
	flat_header 32
	find_device 3
	negotiate 0
	use_queue 1, 32, 0x10000
	go_live
	mov $0x10000, %edi
	xor %ecx, %ecx
	describe_many 15, 0x100000, 96 << 20, 0, 0, 0
	movw $0, 0x11004
	movw $1, 0x11002
	movl $1, QUEUE_NOTIFY(%ebx)
	rest
