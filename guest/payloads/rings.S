# Drives every queue of every device with rings where no memory is, and with chains that lead nowhere, and
# resets the device each time; then it prints p.
.include "virtio.inc"
	.equ QUEUES, 6
.code32
.text
	flat_header 32
	mov $SLOTS, %ebx
slot:	mov DEVICE_ID(%ebx), %eax
	lea -1(%eax), %eax		# neither none nor an empty slot
	cmp $100, %eax
	ja next_slot

	mov $places, %esi
place:	xor %edi, %edi
1:	call begin
	mov (%esi), %eax
	mov %eax, QUEUE_DESC(%ebx)
	mov 4(%esi), %eax
	mov %eax, QUEUE_DESC + 4(%ebx)
	mov 8(%esi), %eax
	mov %eax, QUEUE_DRIVER(%ebx)
	mov 12(%esi), %eax
	mov %eax, QUEUE_DRIVER + 4(%ebx)
	mov 16(%esi), %eax
	mov %eax, QUEUE_DEVICE(%ebx)
	mov 20(%esi), %eax
	mov %eax, QUEUE_DEVICE + 4(%ebx)
	call go
	inc %edi
	cmp $QUEUES, %edi
	jb 1b
	add $24, %esi
	cmp $places_end, %esi
	jb place

	mov $chains, %esi
chain:	xor %edi, %edi
2:	call begin
	movl $0x10000, QUEUE_DESC(%ebx)
	movl $0x11000, QUEUE_DRIVER(%ebx)
	movl $0x12000, QUEUE_DEVICE(%ebx)
	push %esi
	push %edi
	mov $0x10000, %edi
	mov $8, %ecx
	rep movsl
	pop %edi
	pop %esi
	movl $0, 0x11000
	movl $0, 0x12000
	call go
	movw $0x8000, 0x11002		# more entries than the ring has
	mov %edi, QUEUE_NOTIFY(%ebx)
	inc %edi
	cmp $QUEUES, %edi
	jb 2b
	add $32, %esi
	cmp $chains_end, %esi
	jb chain

next_slot:
	add $SLOT_SIZE, %ebx
	cmp $SLOTS_END, %ebx
	jb slot
	print 'p'
	rest

begin:	negotiate 0
	mov %edi, QUEUE_SEL(%ebx)
	movl $8, QUEUE_NUM(%ebx)
	ret

go:	movl $1, QUEUE_READY(%ebx)
	go_live
	movw $4, 0x11002		# descriptor 0, four times
	mov %edi, QUEUE_NOTIFY(%ebx)
	ret

.macro place desc, driver, device
	.quad \desc, \driver, \device
.endm
	.balign 8
places:
	place 0, 0, 0
	place 0xc0000000, 0xc0001000, 0xc0002000	# the devices' own windows
	place 0xfffff000, 0xffffe000, 0xffffd000	# where a PC has its ROM
	place 0xfee00000, 0xfec00000, 0xfffbc000	# interrupt controllers, KVM's own pages
	place 0xfffffffffffffff0, 0xfffffffffffffffe, 0xfffffffffffffffc
	place 0x10000, 0x7fffffc, 0x7fffffe0		# the end of memory
	place 0xbffffff0, 0xbffffffe, 0xbffffffc	# into the hole
	place 0x10001, 0x11001, 0x12001			# not aligned
	place 0x10000, 0x10000, 0x10000			# over each other
places_end:

# Two descriptors each: address, length, flags and next.
.macro descriptor address, length, flags, next=0
	.quad \address
	.long \length
	.word \flags, \next
.endm
chains:
	descriptor 0xc0001000, 0x1000, 0
	descriptor 0, 0, 0
	descriptor 0xfffffffffffffff0, 0x20, WRITE
	descriptor 0, 0, 0
	descriptor 0x13000, 0xffffffff, 0
	descriptor 0, 0, 0
	descriptor 0x13000, 16, NEXT, 0			# its own successor
	descriptor 0, 0, 0
	descriptor 0x13000, 16, NEXT, 0xffff
	descriptor 0, 0, 0
	descriptor 0x13000, 16, (NEXT | WRITE), 1	# what is read behind what is written
	descriptor 0x13000, 16, 0
	descriptor 0x10000, 16, 4			# INDIRECT, in itself
	descriptor 0, 0, 0
	descriptor 0x10000, 17, 4
	descriptor 0, 0, 0
	descriptor 0xfffffffffffffff0, 0xfffffff0, 4
	descriptor 0, 0, 0
	descriptor 0x13000, 0, NEXT, 1			# empty
	descriptor 0x13000, 0, WRITE
chains_end:
